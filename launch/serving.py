"""Manifests that serve an export on Kubernetes: a plain Deployment and its Service, or KServe's InferenceService.

Pure text: `cetnet.launch.cli` reads the options and calls this.
"""

import re
from dataclasses import dataclass
from os.path import normpath
from pathlib import PurePosixPath
from typing import Any

from cetnet.launch.render import CONTAINER_SECURITY, POD_SECURITY, WORKDIR, Mount, as_yaml, mounted
from cetnet.trainer.errors import UserError

_HTTP, _GRPC = 8080, 8081
_AWAY = 5  # seconds in which who balances load hears that a pod ends, before it does
_GRACE = 30  # of the server, for what is in flight
_START = 600  # seconds until the first version must answer


@dataclass(frozen=True)
class Service:
    """`cetnet serve FOLDER` in pods.

    Attributes:
        folder: an export or a folder of exports, on one of the mounts.
        image: from `launch/Dockerfile` with the extra `serve`, or any with the project and KServe's Python server.
        mounts: persistent volumes.
        name: of the service and of the model: lower-case letters, digits and dashes.
        replicas: pods.
        cpu: cores of a pod, and threads of its model.
        memory: of a pod, MiB.
        arguments: more of `cetnet serve`.
        command: the command that rendered it, for the header.
    """

    folder: PurePosixPath
    image: str
    mounts: list[Mount]
    name: str = "cetnet"
    replicas: int = 1
    cpu: int = 2
    memory: int = 4096
    arguments: tuple[str, ...] = ()
    command: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", self.name):
            raise UserError(
                f"--name {self.name!r}: use at most 52 lower-case letters, digits and dashes, a letter first"
            )
        folder = PurePosixPath(normpath(WORKDIR / self.folder))
        if not any(folder.is_relative_to(mount.path) for mount in self.mounts):
            raise UserError(f"{folder} is on no mount; give --mount CLAIM:/PATH:ro and a folder on it")

    @property
    def labels(self) -> dict[str, str]:
        """Of the pods."""
        return {"app.kubernetes.io/name": "cetnet-serve", "app.kubernetes.io/instance": self.name}


def deployment_manifests(service: Service) -> str:
    """A Deployment whose pods are replaced one by one, and a Service with a port for HTTP and one for gRPC."""
    metadata = {"name": service.name, "labels": service.labels}
    ports = [
        {"name": "http", "containerPort": _HTTP},
        {"name": "grpc", "containerPort": _GRPC},
    ]
    template = {
        "metadata": {"labels": service.labels, "annotations": _scraped()},
        "spec": _pod(service, "serve", ports),
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": service.replicas,
            "selector": {"matchLabels": service.labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": template,
        },
    }
    ports_of_service = [
        {"name": "http", "port": _HTTP, "targetPort": "http"},
        {"name": "grpc", "port": _GRPC, "targetPort": "grpc"},
    ]
    spec = {"selector": service.labels, "ports": ports_of_service}
    document = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    return as_yaml(service.command, [deployment, document])


def inference_service(service: Service) -> str:
    """An InferenceService of KServe whose predictor is the server itself, in KServe's standard deployment mode.

    KServe sends HTTP to the first port of the container of this name, and has one only.
    """
    pod = _pod(service, "kserve-container", [{"name": "http1", "containerPort": _HTTP, "protocol": "TCP"}])
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": service.name,
            "labels": service.labels,
            "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
        },
        "spec": {
            "predictor": {
                "minReplicas": service.replicas,
                "maxReplicas": service.replicas,
                "annotations": _scraped(),
                **pod,
            }
        },
    }
    return as_yaml(service.command, [document])


def _scraped() -> dict[str, str]:
    """What Prometheus is commonly set up to look for."""
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(_HTTP),
        "prometheus.io/path": "/metrics",
    }


def _pod(service: Service, container_name: str, ports: list[dict[str, Any]]) -> dict[str, Any]:
    volumes, volume_mounts = mounted(service.mounts)
    command = ["cetnet", "serve", str(service.folder), "--name", service.name, "--host", "0.0.0.0"]
    command += ["--port", str(_HTTP), "--grpc-port", str(_GRPC), "--threads", str(service.cpu)]
    command += service.arguments
    resources = {"cpu": str(service.cpu), "memory": f"{service.memory}Mi"}
    ready, live = ({"httpGet": {"path": f"/v2/health/{of}", "port": _HTTP}} for of in ("ready", "live"))
    container = {
        "name": container_name,
        "image": service.image,
        "workingDir": str(WORKDIR),
        # Kubernetes expands $(NAME) here and reads $$ as $.
        "command": [word.replace("$", "$$") for word in command],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "ports": ports,
        "resources": {"requests": resources, "limits": resources},
        "startupProbe": {**ready, "periodSeconds": 5, "failureThreshold": _START // 5},
        "readinessProbe": {**ready, "periodSeconds": 2, "timeoutSeconds": 2},
        # Patient: while another version is loaded, it answers slowly.
        "livenessProbe": {**live, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": _AWAY}}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": volume_mounts,
    }
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _AWAY + _GRACE + 10,
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": volumes,
    }
