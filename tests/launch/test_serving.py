"""Manifests that serve an export, against Kubernetes' own schemas and KServe's own classes."""

import ast
import importlib.metadata
import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from cetnet.launch.cli import app
from cetnet.trainer.cli import app as whole_app
from cetnet.trainer.errors import UserError
from tests.launch.test_render import documented

FIXED = ["/exports/clicks", "--image", "registry.example/cetnet:1", "--mount", "exports:/exports:ro"]


def rendered(*arguments: str) -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(app, ["render", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return {item["kind"]: item for item in yaml.safe_load_all(result.stdout)}


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
def test_a_deployment_is_what_kubernetes_expects(version: str) -> None:
    documents = rendered(
        "deployment", *FIXED, "--replicas", "3", "--cpu", "4", "--mem", "8G", "--name", "clicks"
    )
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)
    deployment, service = documents["Deployment"]["spec"], documents["Service"]["spec"]
    template = deployment["template"]
    assert deployment["replicas"] == 3
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    assert deployment["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    container = template["spec"]["containers"][0]
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["ports"]} == set(named)
    options = dict(zip(container["command"][3::2], container["command"][4::2], strict=True))
    assert container["command"][:3] == ["cetnet", "serve", "/exports/clicks"]
    assert (int(options["--port"]), int(options["--grpc-port"])) == (named["http"], named["grpc"])
    assert (options["--host"], options["--name"], options["--threads"]) == ("0.0.0.0", "clicks", "4")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == named["http"]
    away = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert template["spec"]["terminationGracePeriodSeconds"] > away + 30


def fields_of(name: str) -> set[str]:
    """The fields of a class of KServe's client, read from its source: to import it takes seconds."""
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    package = importlib.metadata.distribution("kserve").locate_file("kserve")
    source = Path(str(package), "models", f"{module}.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "attribute_map":
            return set(ast.literal_eval(node.value).values())
    raise AssertionError(name)


def test_an_inference_service_has_fields_of_kserve_and_a_pod_that_kubernetes_expects() -> None:
    (document,) = rendered(
        "inferenceservice", *FIXED, "--replicas", "2", "--serve", "max-batch-rows=$(256)"
    ).values()
    assert set(document) <= fields_of("V1beta1InferenceService")
    assert set(document["spec"]) <= fields_of("V1beta1InferenceServiceSpec")
    predictor = document["spec"]["predictor"]
    assert set(predictor) <= fields_of("V1beta1PredictorSpec")
    own = {"minReplicas", "maxReplicas", "annotations"}
    pod = {key: value for key, value in predictor.items() if key not in own}
    for version in ("1.31", "1.37"):
        of_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": document["metadata"], "spec": pod}
        kubernetes_validate.validate(of_pod, version, strict=True)
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container"
    assert len(container["ports"]) == 1
    assert container["command"][-1] == "--max-batch-rows=$$(256)"
    assert predictor["minReplicas"] == predictor["maxReplicas"] == 2


def test_what_is_served_must_be_on_a_mount_and_its_options_known() -> None:
    for folder in ("/other/clicks", "/exports/../clicks", "clicks"):
        with pytest.raises(UserError, match="on no mount"):
            rendered("deployment", folder, *FIXED[1:])
    with pytest.raises(UserError, match="--name 'My Model'"):
        rendered("deployment", *FIXED, "--name", "My Model")
    with pytest.raises(UserError, match="--serve 'a' is not of the form"):
        rendered("deployment", *FIXED, "--serve", "a")


def test_the_rendered_command_is_one_that_cetnet_reads() -> None:
    """It comes as far as looking for the folder."""
    documents = rendered("deployment", *FIXED, "--serve", "max-batch-rows=256", "--serve", "target=pt2")
    command = documents["Deployment"]["spec"]["template"]["spec"]["containers"][0]["command"]
    with pytest.raises(UserError, match="/exports/clicks: no such folder"):
        CliRunner().invoke(whole_app, command[1:], catch_exceptions=False)


@pytest.mark.parametrize(
    "command", documented("docs/serving.md", "cetnet launch render"), ids=lambda text: text.split()[3]
)
def test_documented_commands(command: str) -> None:
    result = CliRunner().invoke(app, shlex.split(command)[2:], catch_exceptions=False)
    assert result.exit_code == 0
    assert "cetnet" in result.stdout
