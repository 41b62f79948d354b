"""TorchX components. `torchx run -s SCHEDULER launch/components.py:train --config FILE -j 1x2`."""

import torchx.specs as specs
from torchx.components import dist


def train(
    *overrides: str,
    config: str,
    j: str = "1x2",
    resume: bool = False,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    max_retries: int = 0,
    image: str = "",
    name: str = "cetnet",
) -> specs.AppDef:
    """Train a model with `cetnet train` under torchrun, on any scheduler that TorchX knows.

    Args:
        overrides: keys of the experiment file to replace, as key=value
        config: experiment file (YAML)
        j: nodes x processes per node, such as 1x2
        resume: continue from the newest checkpoint in run_dir; a job that may be retried always does
        cpu: cores of each node's job
        gpu: GPUs of each node's job
        memMB: memory of each node's job, MiB
        max_retries: how often the scheduler restarts a failed job
        image: container image, for schedulers that use one
        name: name of the job
    """
    arguments = ["train", config, *overrides, *(["--resume"] if resume or max_retries else [])]
    return dist.ddp(
        *arguments,
        m="trainer.cli",
        j=j,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        max_retries=max_retries,
        image=image,
        name=name,
        env={"OMP_NUM_THREADS": str(max(1, cpu // int(j.split("x")[-1])))},
    )
