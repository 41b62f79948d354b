"""Rendered jobs, run by bash and checked against Kubernetes' own schemas."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cetnet.launch.cli import app
from cetnet.launch.render import Job, Mount, kubernetes_manifests, slurm_script
from cetnet.trainer.errors import UserError
from tests.data import write_dataset
from tests.launch.conftest import recorded
from tests.paths import ROOT
from tests.processes import run_settings

BIN = Path(sys.executable).parent
# Whatever a command line can hold.
TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30)
SHELL = st.text("$`'\"\\ \n;&|(){}*!#~=é", max_size=12)
ARGUMENTS = st.lists(TEXT | SHELL, min_size=1, max_size=4)
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(arguments=ARGUMENTS, value=TEXT | SHELL)
def test_bash_reads_a_slurm_script_back(
    tmp_path: Path, slurm: dict[str, str], arguments: list[str], value: str
) -> None:
    job = Job(arguments, nodes=(1, 2), nproc=2, cpu=4, retries=1, env={"VALUE": value})
    script = slurm_script(job, python=str(tmp_path / "bin" / "torchrun"), folder=tmp_path, options={})
    result = subprocess.run(["bash", "-c", script], env=slurm, capture_output=True, check=True)
    assert recorded(result.stdout) == (value, ["train", *arguments, "--resume"])


@MANY
@given(arguments=ARGUMENTS, value=TEXT | SHELL)
def test_kubernetes_and_bash_read_a_manifest_back(
    tmp_path: Path, slurm: dict[str, str], arguments: list[str], value: str
) -> None:
    (tmp_path / "c.yaml").write_text("é: 1\n")
    job = Job([str(tmp_path / "c.yaml"), *arguments], nodes=(2, 2), env={"VALUE": value})
    container = manifests(job)["Job"]["spec"]["template"]["spec"]["containers"][0]
    variables = {"JOB_COMPLETION_INDEX": "1", "HOME": "/root"}
    variables |= {item["name"]: expanded(item["value"], variables) for item in container["env"]}
    result = subprocess.run(
        [expanded(word, variables) for word in container["command"]],
        env=variables | {"PATH": slurm["PATH"]},
        capture_output=True,
        check=True,
    )
    assert recorded(result.stdout) == (value, ["train", "/etc/cetnet/config.yaml", *arguments, "--resume"])
    assert b"is_host=0," in result.stdout


@MANY
@given(TEXT | SHELL)
def test_sbatch_reads_an_option_back(value: str) -> None:
    """sbatch's rules (`get_argument` in its sources) are a shell's, for the quotes that we use."""
    if "\n" in value:
        with pytest.raises(UserError, match="a value on one line"):
            slurm_script(Job(["c.yaml"]), python="p", folder=Path("/"), options={"comment": value})
        return
    script = slurm_script(Job(["c.yaml"]), python="p", folder=Path("/a b"), options={"comment": value})
    directives = [line.removeprefix("#SBATCH ") for line in script.split("\n") if line.startswith("#SBATCH ")]
    options = [word for line in directives for word in shlex.split(line, comments=True)]
    assert "--chdir=/a b" in options
    assert f"--comment={value}" * bool(value) in [*options, ""]


def expanded(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a word: `$(NAME)` if it knows the name, and `$$` is `$`."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0]),
        text,
    )


def manifests(job: Job, **options: Any) -> dict[str, Any]:
    options = {
        "image": "registry.example/cetnet:1",
        "mounts": [Mount.parse("runs:/runs"), Mount.parse("clicks:/data:ro")],
        "run_dir": Path("/runs/a"),
        "disk": 10,
    } | options
    return {item["kind"]: item for item in yaml.safe_load_all(kubernetes_manifests(job, **options))}


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
@pytest.mark.parametrize(
    "shape", [{"nodes": (1, 1)}, {"nodes": (2, 4), "nproc": 8, "cpu": 96, "gpu": 8, "memory": 1 << 20}]
)
def test_manifests_are_what_kubernetes_expects(version: str, shape: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 1\n")
    job = Job([str(tmp_path / "c.yaml")], minutes=90, retries=3, **shape)
    documents = manifests(job, queue="ads")
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)
    config, service, indexed = (documents[kind] for kind in ("ConfigMap", "Service", "Job"))
    pod = indexed["spec"]["template"]
    assert config["data"]["config.yaml"] == "a: 1\n"
    # Pod 0's name: the Job's name and index, within the Service of the pods' subdomain.
    assert (
        f'"{indexed["metadata"]["name"]}-0.{pod["spec"]["subdomain"]}:29500"'
        in pod["spec"]["containers"][0]["command"][2]
    )
    assert service["metadata"]["name"] == pod["spec"]["subdomain"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert indexed["spec"]["completions"] == indexed["spec"]["parallelism"] == job.nodes[1]
    assert indexed["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "ads"
    claims = [volume.get("persistentVolumeClaim") for volume in pod["spec"]["volumes"]]
    assert {"claimName": "clicks", "readOnly": True} in claims


def test_the_experiment_file_travels_as_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("é: 1\n".encode("utf-16"))
    assert manifests(Job([str(tmp_path / "c.yaml")]))["ConfigMap"]["data"]["config.yaml"] == "é: 1\n"
    with pytest.raises(UserError, match="can be read only once"):
        manifests(Job(["/dev/null"]))


def test_a_schema_knows_a_wrong_manifest(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 1\n")
    document = manifests(Job([str(tmp_path / "c.yaml")]))["Job"]
    document["spec"]["template"]["spec"]["subdomaine"] = "typo"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.34", strict=True)


def test_a_slurm_job_trains_on_two_nodes_after_a_failure(tmp_path: Path, slurm: dict[str, str]) -> None:
    write_dataset(tmp_path / "data", {"train": 640, "test": 100})
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(run_settings(tmp_path / "data", tmp_path / "a run")))
    script = tmp_path / "job.sh"
    options = [
        "-j",
        "2x1",
        "--retries",
        "1",
        "--gpu",
        "1",
        "--env",
        "GLOO_SOCKET_IFNAME=lo",
        "--time",
        "1:30:00",
    ]
    call("render", "slurm", config, *options, "--name", "clicks", "--mem", "4G", "--out", script)
    for check in ([BIN / "shellcheck", script], ["bash", "-n", script]):
        subprocess.run(check, check=True)
    wanted = set(re.findall(r"^#SBATCH --(.*)", script.read_text(), re.MULTILINE))
    assert wanted >= {
        "nodes=2",
        "ntasks-per-node=1",
        "gpus-per-node=1",
        "mem=4096M",
        "time=90",
        "requeue",
        "signal=TERM@120",
    }

    assert script.read_text().count("sharding.cluster.ddr_gb=4 --resume") == 1  # the planner's limit

    def start(**environment: str) -> subprocess.CompletedProcess[str]:
        env = slurm | {"SLURM_JOB_NUM_NODES": "2", "CETNET_COMMIT": "v1"} | environment
        return subprocess.run(
            ["bash", script], env=env, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )

    failed, given_up = start(FAIL="9"), start(FAIL="9", SLURM_RESTART_COUNT="1")
    assert (failed.returncode, failed.stdout) == (9, "requeued 7\n")
    assert (given_up.returncode, given_up.stdout) == (9, "")
    result = start(SLURM_RESTART_COUNT="1")
    assert result.returncode == 0, result.stdout + result.stderr
    environment = json.loads((tmp_path / "a run" / "environment.json").read_text())
    assert (environment["world_size"], environment["commit"]) == (2, "v1")
    assert environment["slurm"] == {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_RESTART_COUNT": "1",
    }
    assert json.loads((tmp_path / "a run" / "result.json").read_text())["rows"] == 640


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["-j", "4"], "-j 4: nodes x processes"),
        (["-j", "1:3x2"], "data.lanes=4 is not a multiple of 3 x 2"),
        (["-j", "1x4", "--gpu", "2"], "4 processes on a node of 2 GPUs"),
        (["--mem", "96"], "--mem 96: a number with M or G"),
        (["--time", "tomorrow"], "--time tomorrow"),
        (["--name", "My Job"], "name 'My Job'"),
        (["--env", "A"], "--env 'A'"),
        (["--env", "A-B=1"], "'A-B' is not the name"),
        (["--partition", "a\n#SBATCH --wrap=b"], "sbatch option partition"),
        (["training.sed=1"], "training.sed: unknown key"),
    ],
)
def test_mistakes_are_told_in_a_line(options: list[str], problem: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(run_settings(tmp_path, tmp_path)))
    with pytest.raises(UserError) as error:
        call("render", "slurm", config, *options)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pod_must_write_to_a_mount(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 1\n")
    job = Job([str(tmp_path / "c.yaml")])
    for run_dir in ("runs/a", "/data/runs", "/runsaway"):
        with pytest.raises(UserError, match="on no writable mount"):
            manifests(job, run_dir=Path(run_dir))
    manifests(job, run_dir=Path("runs/a"), mounts=[Mount.parse("runs:/app/runs")])


def call(*arguments: str | Path) -> str:
    """Output of `cetnet launch`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def documented(page: str, command: str) -> list[str]:
    """The commands of a page's code blocks that begin so, each on one line."""
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    return [line.split(" | ")[0].split("  #")[0] for line in lines if line.startswith(command)]


@pytest.mark.parametrize(
    "command", documented("docs/launching.md", "cetnet launch render"), ids=lambda text: text.split()[3]
)
def test_documented_commands(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(command)[2:], catch_exceptions=False)
    assert result.exit_code == 0
    if "--out" in command:
        assert "#SBATCH --nodes=4" in Path("job.sh").read_text(encoding="utf-8")
    else:
        assert "parallelism: 4" in result.stdout


def test_a_run_dir_that_leaves_its_mount_is_refused() -> None:
    with pytest.raises(UserError, match="on no writable mount"):
        kubernetes_manifests(
            Job(["configs/demo.yaml"]),
            image="a",
            mounts=[Mount.parse("runs:/runs")],
            run_dir=Path("/runs/../elsewhere"),
            disk=1,
        )


def test_options_of_sbatch_without_a_value() -> None:
    script = slurm_script(
        Job(["c.yaml"]), python="python", folder=Path("/srv"), options={"exclusive": "", "account": "ads"}
    )
    assert "#SBATCH --exclusive\n" in script
    assert "#SBATCH --account=ads\n" in script
