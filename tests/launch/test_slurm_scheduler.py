"""What TorchX would submit to Slurm; `make test-slurm` submits it."""

from cetnet.launch.components import train
from cetnet.launch.slurm.scheduler import create_scheduler


def test_gpus_are_asked_for_per_node() -> None:
    """Newer versions of Slurm refuse TorchX's --gpus-per-task."""
    app = train(config="c.yaml", j="2x8", gpu=8, memMB=-1)
    script = repr(create_scheduler("cetnet").submit_dryrun(app, {"partition": "gpu"}))
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH --")]
    assert len(directives) == 2
    for directive in directives:
        assert "--partition=gpu" in directive
        assert "--gpus-per-node=8" in directive
        assert "--gpus-per-task" not in directive
        assert "--mem" not in directive
