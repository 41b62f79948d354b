"""A training job as plain text: an sbatch script, or manifests for Kubernetes; neither needs TorchX."""

import re
import shlex
from dataclasses import dataclass, field
from os.path import normpath
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cetnet.trainer.errors import UserError, printable
from cetnet.trainer.yaml_files import decoded

WORKDIR = PurePosixPath("/app")
"""Where `launch/Dockerfile` puts the project: relative paths of a job in a container start here."""

_CONFIG = PurePosixPath("/etc/cetnet/config.yaml")
_PORT = 29500  # of a pod, which has an address of its own
_USER = 1000  # of launch/Dockerfile
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""No privileges, in this and in the pod."""

# Seconds that a node waits for the others: they may still pull the image, or queue for GPUs.
_PATIENCE = 1800
# Seconds from the warning to the end, in which a checkpoint is written; torchrun alone would give its processes 30.
_GRACE = 120


@dataclass(frozen=True)
class Job:
    """`cetnet train ARGUMENTS --resume` under torchrun on some nodes.

    Attributes:
        arguments: of `cetnet train`; the first is the experiment file.
        name: lower-case letters, digits and dashes.
        nodes: smallest and largest number; a job starts with what it gets.
        nproc: processes of a node.
        cpu: cores of a node.
        gpu: GPUs of a node.
        memory: of a node, MiB; None leaves it to the scheduler.
        minutes: time limit.
        retries: how often the job is started again after a failure.
        env: environment of the processes.
        command: the command that rendered it, for the header.
    """

    arguments: list[str]
    name: str = "cetnet"
    nodes: tuple[int, int] = (1, 1)
    nproc: int = 1
    cpu: int = 1
    gpu: int = 0
    memory: int | None = None
    minutes: int | None = None
    retries: int = 0
    env: dict[str, str] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", self.name):
            raise UserError(
                f"--name {self.name!r}: use at most 52 lower-case letters, digits and dashes, a letter first"
            )
        if self.gpu and self.nproc > self.gpu:
            raise UserError(
                f"-j: {self.nproc} processes on a node of {self.gpu} GPUs; start one process per GPU"
            )
        for key in self.env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
                raise UserError(f"--env {key!r} is not the name of an environment variable")

    @property
    def environment(self) -> dict[str, str]:
        """`env`, and what every job needs; each process gets its share of the cores."""
        return {
            "OMP_NUM_THREADS": str(max(1, self.cpu // self.nproc)),
            "PYTHONSAFEPATH": "1",  # `-m cetnet` is the installed one, whatever the working directory holds
            "PYTHONUNBUFFERED": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_GRACE),
            **self.env,
        }

    def torchrun(self, program: str, *, nodes: str, endpoint: str, id: str, is_host: str) -> str:
        """The shell line that runs torchrun on one node; its arguments are those of `cetnet`.

        `nodes`, `endpoint`, `id` and `is_host` are shell words. `is_host` settles which node keeps the
        rendezvous' store: left to guess by its host name, a node without DNS yet would guess wrong.
        """
        conf = f"is_host={is_host},join_timeout={_PATIENCE},read_timeout={_PATIENCE}"
        return (
            f"exec {program} --nnodes {nodes} --nproc-per-node {self.nproc} --rdzv-backend c10d "
            f'--rdzv-endpoint "{endpoint}" --rdzv-id "{id}" --rdzv-conf "{conf}" -m cetnet "$@"'
        )


def slurm_script(
    job: Job, *, python: str, folder: Path, partition: str | None = None, options: dict[str, str]
) -> str:
    """The job as a script for `sbatch`: no heterogeneous job, GPUs asked for per node, no accounting needed.

    Args:
        job: what runs.
        python: of an environment with the project; like `folder`, the nodes must see it.
        folder: where relative paths start.
        partition: Slurm's, or None for its default.
        options: more options of sbatch, such as account or qos.
    """
    directives = _directives(job, {"chdir": str(folder), "partition": partition, **options})
    launcher = job.torchrun(
        f"{shlex.quote(python)} -m torch.distributed.run",
        nodes="$SLURM_JOB_NUM_NODES",
        endpoint="$head:$port",
        id="$SLURM_JOB_ID",
        is_host="$((SLURM_NODEID == 0))",
    )
    lines = [
        "#!/bin/bash",
        *_header(job.command),
        f"# Submit it with `sbatch FILE`. Failed, pre-empted, out of time: it resumes, {job.retries} times at most.",
        *(f"#SBATCH --{directive}" for directive in directives),
        "",
        *(f"export {key}={shlex.quote(value)}" for key, value in job.environment.items()),
        "",
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "port=$((20000 + SLURM_JOB_ID % 10000))  # two jobs on a node don't meet",
        "export head port",
        "",
        "# shellcheck disable=SC2016  # each node fills in its own",
        # Since 22.05 srun does not take --cpus-per-task from sbatch.
        f"srun --cpus-per-task={job.cpu} --kill-on-bad-exit=1 bash -c \\",
        f"    {shlex.quote(launcher)} \\",
        f"    cetnet {shlex.join(['train', *job.arguments, '--resume'])}",
        "code=$?",
    ]
    if job.retries:
        lines += [
            "",
            f"if ((code != 0 && ${{SLURM_RESTART_COUNT:-0}} < {job.retries})); then",
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
        ]
    return "\n".join([*lines, "exit $code", ""])


def _directives(job: Job, options: dict[str, str | None]) -> list[str]:
    """Options of sbatch: what the job wants, and `options`, which go before it."""
    least, most = job.nodes
    wanted: dict[str, str | None] = {
        "job-name": job.name,
        "output": f"{job.name}-%j.out",
        "open-mode": "append",  # a job that is started again goes on in the same file
        "nodes": str(most) if least == most else f"{least}-{most}",
        "ntasks-per-node": "1",
        "cpus-per-task": str(job.cpu),
        "gpus-per-node": str(job.gpu) if job.gpu else None,
        "mem": f"{job.memory}M" if job.memory else None,
        "time": str(job.minutes) if job.minutes else None,
        # Before the time is up; a job too short for it would be told at its start.
        "signal": None if job.minutes and 60 * job.minutes <= 2 * _GRACE else f"TERM@{_GRACE}",
        **options,
    }
    for key, value in wanted.items():
        if not re.fullmatch(r"[a-z][-a-z]*", key) or "\n" in (value or ""):
            raise UserError(
                f"sbatch option {key}={value!r}: a name, and a value on one line, are expected; change it"
            )
    given = [key + f"={_quoted(value)}" * bool(value) for key, value in wanted.items() if value is not None]
    return [*given, "requeue" if job.retries else "no-requeue"]


def _quoted(value: str) -> str:
    """A value as sbatch reads it in a script: spaces in quotes, a backslash before what would end them."""
    if re.fullmatch(r"[\w@%+=:,./-]*", value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass(frozen=True)
class Mount:
    """A persistent volume claim in a pod."""

    claim: str
    path: PurePosixPath
    read_only: bool

    @classmethod
    def parse(cls, text: str) -> "Mount":
        """`CLAIM:PATH` or `CLAIM:PATH:ro`."""
        match = re.fullmatch(r"([a-z0-9]([-.a-z0-9]*[a-z0-9])?):(/[^:]*)(:ro)?", text)
        if match is None:
            raise UserError(f"--mount {text!r} is not CLAIM:/PATH or CLAIM:/PATH:ro")
        return cls(match[1], PurePosixPath(match[3]), match[4] is not None)


def kubernetes_manifests(
    job: Job,
    *,
    image: str,
    mounts: list[Mount],
    run_dir: Path,
    disk: int,
    queue: str | None = None,
) -> str:
    """The job as YAML for `kubectl apply`: ConfigMap, headless Service, indexed Job.

    Args:
        job: its first argument, the experiment file, is read here and travels in the ConfigMap.
        image: built from `launch/Dockerfile`, or any with `bash` and the project installed.
        mounts: persistent volumes.
        run_dir: where the run writes, which must be on one of them.
        disk: ephemeral storage of a pod, GiB.
        queue: Kueue's LocalQueue, which starts all pods or none.

    Raises:
        UserError: run_dir would be lost with the pod, or the experiment file is a pipe.
    """
    folder = PurePosixPath(normpath(WORKDIR / run_dir))
    if not any(folder.is_relative_to(mount.path) and not mount.read_only for mount in mounts):
        raise UserError(
            f"run_dir {folder} is on no writable mount and would be lost with the pod; give "
            "--mount CLAIM:/PATH and a run_dir=... on it"
        )
    metadata = {"name": job.name, "labels": _labels(job)}
    text = decoded(Path(job.arguments[0]).read_bytes())
    if not text:
        raise UserError(f"{job.arguments[0]}: can be read only once; name a file on the disk")
    config = {_CONFIG.name: text}
    documents = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": config},
        _service(job, metadata),
        _indexed_job(job, metadata, _pod(job, _container(job, image, disk), mounts), queue),
    ]
    return as_yaml(job.command, documents)


def _labels(job: Job) -> dict[str, str]:
    return {"app.kubernetes.io/name": "cetnet", "app.kubernetes.io/instance": job.name}


def _service(job: Job, metadata: dict[str, Any]) -> dict[str, Any]:
    """Names for the pods, by which they find each other."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,  # pods must find pod 0 before it is ready
        "selector": _labels(job),
        "ports": [{"name": "rendezvous", "port": _PORT}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _indexed_job(
    job: Job, metadata: dict[str, Any], pod: dict[str, Any], queue: str | None
) -> dict[str, Any]:
    """A pod for each node, all of which start, and are started again, together."""
    spec = {
        "completionMode": "Indexed",
        "completions": job.nodes[1],
        "parallelism": job.nodes[1],
        # If one pod fails, its peers lose it, fail too, and all are started again: one retry of each.
        "backoffLimitPerIndex": job.retries,
        "maxFailedIndexes": 0,
        "podFailurePolicy": {
            "rules": [
                # A pod that was pre-empted or drained is replaced without using up a retry.
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
            ]
        },
        # All pods finish together; none is started again, or waited for, once one has.
        "successPolicy": {"rules": [{"succeededCount": 1}]},
        **({"activeDeadlineSeconds": 60 * job.minutes} if job.minutes else {}),
        "template": {"metadata": {"labels": _labels(job)}, "spec": pod},
    }
    if queue:
        metadata = metadata | {"labels": _labels(job) | {"kueue.x-k8s.io/queue-name": queue}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _pod(job: Job, container: dict[str, Any], mounts: list[Mount]) -> dict[str, Any]:
    """A pod with the container and its volumes: experiment file, shared memory, and the mounts."""
    volumes, volume_mounts = mounted(mounts)
    volumes += [
        {"name": "config", "configMap": {"name": job.name}},
        # 64 MiB by default, too little for NCCL; counts as the pod's memory.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    volume_mounts += [
        {"name": "config", "mountPath": str(_CONFIG.parent), "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    return {
        "subdomain": job.name,  # pod 0 is <name>-0.<name>, whatever node it is on
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE,
        "securityContext": POD_SECURITY,
        "containers": [container | {"volumeMounts": volume_mounts}],
        "volumes": volumes,
    }


def _container(job: Job, image: str, disk: int) -> dict[str, Any]:
    """One node's torchrun; its volumes are the pod's to mount."""
    least, most = job.nodes
    launcher = job.torchrun(
        "torchrun" if least == most else f"torchrun --max-restarts {job.retries}",
        nodes=str(most) if least == most else f"{least}:{most}",
        endpoint=f"{job.name}-0.{job.name}:{_PORT}",
        id=job.name,
        is_host="$((JOB_COMPLETION_INDEX == 0))",
    )
    command = ["bash", "-c", launcher, "cetnet", "train", str(_CONFIG), *job.arguments[1:], "--resume"]
    resources = {
        "cpu": str(job.cpu),
        **({"memory": f"{job.memory}Mi"} if job.memory else {}),
        "ephemeral-storage": f"{disk}Gi",
        **({"nvidia.com/gpu": str(job.gpu)} if job.gpu else {}),
    }
    return {
        "name": "train",
        "image": image,
        "workingDir": str(WORKDIR),
        # Kubernetes expands $(NAME) here and reads $$ as $.
        "command": [word.replace("$", "$$") for word in command],
        "env": [{"name": key, "value": value.replace("$", "$$")} for key, value in job.environment.items()],
        "ports": [{"name": "rendezvous", "containerPort": _PORT}],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": CONTAINER_SECURITY,
    }


def mounted(mounts: list[Mount]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The volumes of a pod for these mounts, and how its container mounts them."""
    volumes, volume_mounts = [], []
    for number, mount in enumerate(mounts):
        name = f"mount-{number}"
        claim = {"claimName": mount.claim, "readOnly": mount.read_only}
        volumes.append({"name": name, "persistentVolumeClaim": claim})
        volume_mounts.append({"name": name, "mountPath": str(mount.path), "readOnly": mount.read_only})
    return volumes, volume_mounts


def as_yaml(command: str, documents: list[dict[str, Any]]) -> str:
    """Manifests for `kubectl apply`, under the command that rendered them."""
    text = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=110)
    return "\n".join([*_header(command), text])


class _Dumper(yaml.SafeDumper):
    """Plain YAML: no anchors, and text of several lines as a block."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write what appears twice twice."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _header(command: str) -> list[str]:
    """The command, in a comment of one line that takes no text for anything else."""
    return [f"# {printable(' '.join(command.split()))}"] if command else []
