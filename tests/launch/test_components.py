"""TorchX components as each scheduler would run them."""

import configparser
import inspect
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from torchx.runner import get_runner
from torchx.schedulers import get_scheduler_factories
from torchx.specs import AppDef

from cetnet.launch import components
from tests.launch.conftest import recorded
from tests.launch.test_render import ARGUMENTS, BIN, ROOT, SHELL, TEXT


def request(app: AppDef, scheduler: str, **options: str) -> str:
    """What TorchX would hand to a scheduler."""
    with get_runner() as runner:
        return str(runner.dryrun(app, scheduler, options))


def slurm_script(app: AppDef) -> str:
    return "#!/bin/bash" + request(app, "slurm").split("#!/bin/bash", 1)[1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(overrides=ARGUMENTS, value=(TEXT | SHELL))
def test_bash_reads_torchx_slurm_script_back(
    tmp_path: Path, slurm: dict[str, str], overrides: list[str], value: str
) -> None:
    # With a comma the value would be cut by srun's --export; the component gives it another way.
    app = components.train(*overrides, config="c.yaml", j="1x1", max_retries=1, env={"VALUE": value + ","})
    result = subprocess.run(
        ["bash", "-c", slurm_script(app)], env=slurm, cwd=tmp_path, capture_output=True, check=True
    )
    output = result.stdout.split(b"job exited")[0]
    assert recorded(output) == (value + ",", ["train", "c.yaml", *overrides, "--resume"])


def test_every_job_resumes_and_an_elastic_one_survives_its_nodes() -> None:
    assert components.train(config="c.yaml").roles[0].args[-1].endswith("--resume")
    role = components.train(config="c.yaml", j="1:2x2").roles[0]
    assert (role.min_replicas, role.num_replicas) == (1, 2)
    assert role.env["PET_MAX_RESTARTS"] == "3"
    assert role.env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_a_request_for_memory_can_be_left_out() -> None:
    assert "--mem=512" in slurm_script(components.evaluate("run", "data", memMB=512))
    assert "--mem" not in slurm_script(components.evaluate("run", "data", memMB=-1))


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_takes_torchx_pods(version: str) -> None:
    mounts = ["type=volume", "src=runs", "dst=/runs", "type=volume", "src=clicks", "dst=/data", "readonly"]
    app = components.train(
        "run_dir=/runs/a", config="c.yaml", j="1:2x4", gpu=4, cpu=32, max_retries=2, mounts=mounts
    )
    with pytest.warns(UserWarning, match="Volcano"):
        job = yaml.safe_load(request(app, "kubernetes", queue="default"))
    # Volcano's Job is no resource of Kubernetes itself, but its pods are.
    assert job["spec"].keys() >= {"queue", "maxRetry", "plugins"}
    assert [task["minAvailable"] for task in job["spec"]["tasks"]] == [1, 0]
    for task in job["spec"]["tasks"]:
        pod = {"apiVersion": "v1", "kind": "Pod", **task["template"]}
        pod["metadata"]["name"] = task["name"]
        kubernetes_validate.validate(pod, version, strict=True)
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
        assert [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]] == [
            "/dev/shm",
            "/runs",
            "/data",
        ]


def test_aws_batch_takes_the_job() -> None:
    app = components.train(config="c.yaml", j="2x8", h="aws_p4d.24xlarge", max_retries=3)
    nodes = yaml.safe_load(request(app, "aws_batch", queue="gpu"))["job_def"]["nodeProperties"]
    assert nodes["numNodes"] == 2
    container = nodes["nodeRangeProperties"][0]["container"]
    assert container["instanceType"] == "p4d.24xlarge"
    assert {"name": "OMP_NUM_THREADS", "value": "12"} in container["environment"]  # 96 cores


def test_the_example_configuration_names_what_there_is() -> None:
    example = configparser.ConfigParser()
    example.optionxform = str  # type: ignore[assignment, method-assign]
    example.read(ROOT / "launch" / "torchxconfig.example")
    factories = get_scheduler_factories()
    for section in example.sections():
        kind, colon, _ = section.partition(":")
        if kind == "component":
            continue
        if colon:
            assert (section, set(example[section])) == ("cli:run", {"component", "workspace"})
            continue
        known = {option for option, _ in factories[section]("torchx").run_opts()}
        assert set(example[section]) <= known, section
    for component in ("train", "evaluate", "study"):
        parameters = inspect.signature(getattr(components, component)).parameters
        assert set(example[f"component:cetnet.{component}"]) <= set(parameters)


def test_the_dockerfile_is_sound() -> None:
    subprocess.run([BIN / "hadolint", ROOT / "launch" / "Dockerfile"], check=True)
