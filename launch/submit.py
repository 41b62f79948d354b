"""A study as one job per run, submitted through TorchX."""

import shlex
from pathlib import Path

from torchx.runner import get_runner

from cetnet.benchmarks.study.definition import Study, refuse_changed, runs_of
from cetnet.launch.cluster import Cluster, Resources
from cetnet.trainer.console import output
from cetnet.trainer.errors import UserError


def submit_study(path: Path, scheduler: str, options: str, resources: Resources, *, dryrun: bool) -> None:
    """Submit every run of a study that is neither finished nor under way.

    A run's job is remembered beside its folder, in `seed<k>.job`, so that none is submitted twice.

    Args:
        path: The study file.
        scheduler: TorchX's name of it; its options in `.torchxconfig` hold where `options` has none.
        options: `key=value,...` for the scheduler.
        resources: Of each job.
        dryrun: Show what would be submitted.

    Raises:
        UserError: the study or an option is wrong, or a run folder was made with other settings.
    """
    if scheduler == "local_cwd":
        raise UserError(f"local_cwd ends its jobs with this program; use `cetnet study {path}` here")
    study = Study.load(path)
    runs = runs_of(study, path)
    refuse_changed(runs, path)
    with get_runner() as runner:
        cluster = Cluster(runner, scheduler, options, resources)
        submitted = 0
        for number, run in enumerate(runs):
            label = f"{run.variant}, seed {run.seed}"
            if run.finished:
                output.print(f"{label}: finished")
                continue
            if (state := cluster.state(run)) and not state.ended:
                output.print(f"{label}: {state.handle}, {state.text}")
                continue
            if not (run.ready or dryrun):
                output.print(f"{label}: waits for its teacher; submit the study again when that is finished")
                continue
            name = f"{study.name}-{run.variant}"[:30] + f"-{run.seed}"
            request = cluster.request(name, run, 29500 + number % 1000)
            submitted += 1
            if dryrun:
                output.rule(label)
                print(request)
                continue
            output.print(f"{label}: {cluster.submit(request, run, label)}")
    if submitted and not dryrun:
        output.print(
            f"{submitted} of {len(runs)} runs submitted. When they are finished: "
            f"cetnet study {shlex.quote(str(path))} --report-only",
        )
