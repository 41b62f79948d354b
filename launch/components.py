"""TorchX components: `torchx run -s SCHEDULER cetnet.train --config FILE -j 4x8`.

`pyproject.toml` registers them with TorchX as `cetnet`.
"""

import shlex
from typing import Any, Dict, List, Optional, Sequence  # the annotations that TorchX reads

import torchx.specs as specs
from torchx.components import dist


def train(
    *overrides: str,
    config: str,
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    h: Optional[str] = None,
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    image: str = "cetnet:latest",
    name: str = "cetnet",
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train a model: `cetnet train --resume` under torchrun on one node or many.

    If run_dir holds an unfinished run of this experiment, training goes on from its newest checkpoint.

    Args:
        overrides: keys of the experiment file to replace, as key=value; after a -- if one starts with a dash
        config: experiment file (YAML), as the job sees it
        j: nodes x processes of a node, such as 4x8; 2:4x8 trains with what it gets from 2 to 4 nodes
        cpu: cores of a node
        gpu: GPUs of a node
        memMB: memory of a node, MiB; -1 asks for none, for clusters that reject a request
        h: a named resource, such as aws_p4d.24xlarge, instead of cpu, gpu and memMB
        max_retries: how often the scheduler starts a failed job again
        env: environment of the processes, such as NCCL_SOCKET_IFNAME=ib0,NCCL_DEBUG=INFO
        mounts: mounts of the container, such as type=volume,src=CLAIM,dst=/data,readonly
        image: container image, for schedulers that use one
        name: name of the job
        rdzv_port: port of the first node where the nodes meet; two jobs on a node need two
    """
    arguments = ["train", config, *overrides, "--resume"]  # some schedulers requeue unasked
    environment = _environment(env, j, specs.resource(cpu=cpu, h=h).cpu)
    # How long a checkpoint may take after a signal is up to the scheduler, not to the 30 seconds of torchrun.
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")
    if ":" in j:  # what torchrun reads as --max-restarts: a lost node is a failure of those that remain
        environment.setdefault("PET_MAX_RESTARTS", str(max(max_retries, 3)))
        # Otherwise a node that joins waits for the address of the first round, which nobody repeats (torch 2.13).
        environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    return _torchrun(
        arguments,
        j=j,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        h=h,
        max_retries=max_retries,
        env=environment,
        mounts=mounts,
        image=image,
        name=name,
        rdzv_port=rdzv_port,
    )


def evaluate(
    run: str,
    data: str,
    split: str = "test",
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    h: Optional[str] = None,
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    image: str = "cetnet:latest",
    name: str = "cetnet-evaluate",
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Score a split with a trained model: `cetnet evaluate` under torchrun; the metrics are in the log.

    Args:
        run: folder of the run
        data: a prepared dataset
        split: split to score
        j: nodes x processes of a node, such as 1x8
        cpu: cores of a node
        gpu: GPUs of a node
        memMB: memory of a node, MiB; -1 asks for none, for clusters that reject a request
        h: a named resource, such as aws_p4d.24xlarge, instead of cpu, gpu and memMB
        max_retries: how often the scheduler starts a failed job again
        env: environment of the processes, such as NCCL_SOCKET_IFNAME=ib0,NCCL_DEBUG=INFO
        mounts: mounts of the container, such as type=volume,src=CLAIM,dst=/data,readonly
        image: container image, for schedulers that use one
        name: name of the job
        rdzv_port: port of the first node where the nodes meet; two jobs on a node need two
    """
    arguments = ["evaluate", run, data, "--split", split]
    environment = _environment(env, j, specs.resource(cpu=cpu, h=h).cpu)
    return _torchrun(
        arguments,
        j=j,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        h=h,
        max_retries=max_retries,
        env=environment,
        mounts=mounts,
        image=image,
        name=name,
        rdzv_port=rdzv_port,
    )


def study(
    file: str,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    h: Optional[str] = None,
    max_retries: int = 0,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    image: str = "cetnet:latest",
    name: str = "cetnet-study",
) -> specs.AppDef:
    """Run a whole study on one node, one run after the other: `cetnet study`. Started again, it goes on.

    One job per run, side by side: `cetnet launch study FILE -s SCHEDULER`.

    Args:
        file: study file (YAML), which says how many processes a run has
        cpu: cores of the node
        gpu: GPUs of the node
        memMB: memory of the node, MiB; -1 asks for none, for clusters that reject a request
        h: a named resource, such as aws_p4d.24xlarge, instead of cpu, gpu and memMB
        max_retries: how often the scheduler starts a failed job again
        env: environment of the processes, such as OMP_NUM_THREADS=4
        mounts: mounts of the container, such as type=volume,src=CLAIM,dst=/data,readonly
        image: container image, for schedulers that use one
        name: name of the job
    """
    role = specs.Role(
        name="study",
        image=image,
        entrypoint="bash",
        args=["-c", f"exec cetnet study {shlex.quote(_escape(file))}"],
        env=env or {},
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        max_retries=max_retries,
        mounts=specs.parse_mounts(mounts or []),
    )
    return _without_commas(specs.AppDef(name=name, roles=[role]))


def _torchrun(arguments: Sequence[str], **options: Any) -> specs.AppDef:
    """`cetnet ARGUMENTS` under torchrun; options are those of `dist.ddp`."""
    app = dist.ddp(*map(_escape, arguments), m="cetnet", **options)
    app.roles[0].name = arguments[0]  # schedulers show it; TorchX would call it `cetnet`
    return _without_commas(app)


def _environment(env: Optional[Dict[str, str]], j: str, cpu: int) -> Dict[str, str]:
    """`env`, and what every job needs; each process gets its share of the cores."""
    return {
        "OMP_NUM_THREADS": str(max(1, cpu // int(j.split("x")[-1]))),
        "PYTHONSAFEPATH": "1",  # `-m cetnet` is the installed one, whatever the working directory holds
    } | (env or {})


def _escape(text: str) -> str:
    """TorchX fills templates in arguments: `$$` is its word for `$`."""
    return text.replace("$", "$$")


def _without_commas(app: specs.AppDef) -> specs.AppDef:
    """Set variables with a comma in the command: TorchX gives Slurm `--export=A=1,B=2`, which a comma breaks."""
    for role in app.roles:
        listed = {key: value for key, value in role.env.items() if "," in value}
        role.env = {key: value for key, value in role.env.items() if key not in listed}
        exports = "".join(f"export {key}={shlex.quote(_escape(value))}; " for key, value in listed.items())
        role.args[-1] = exports + role.args[-1]
    return app
