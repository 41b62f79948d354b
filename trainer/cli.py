"""The command line: `cetnet prepare | generate | train | evaluate | predict | plan | calibrate | study | ...`.

Heavy libraries are imported inside the commands, so that `--help` and mistakes answer at once.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGHUP
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import cetnet
from cetnet.launch.cli import app as launch_app
from cetnet.trainer.console import quieten
from cetnet.trainer.errors import UserError
from cetnet.trainer.explain.command import add_explain
from cetnet.trainer.export.command import export
from cetnet.trainer.failures import install_hooks, run_told, tell
from cetnet.trainer.prepare.cli import app as prepare_app
from cetnet.trainer.prepare.generate.cli import app as generate_app
from cetnet.trainer.processes.environment import check_environment, check_threads, world_size
from cetnet.trainer.processes.signals import cleaning_up
from cetnet.trainer.score_commands import add_evaluate, add_predict
from cetnet.trainer.serve.command import serve
from cetnet.trainer.versions import check_loading, check_versions

DISTRIBUTED = {"train", "evaluate", "predict", "explain", "calibrate"}


class _Commands(TyperGroup):
    """Commands in which a file that ends too early is an error as others; click takes EOFError for an abort."""

    def invoke(self, ctx: Any) -> Any:
        """Be a command."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise OSError(f"a file ends too early ({error})") from error


app = typer.Typer(
    cls=_Commands,
    help="Train and compare click-through-rate ensembles on TorchRec.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(prepare_app, name="prepare")
app.add_typer(generate_app, name="generate")
app.add_typer(launch_app, name="launch")
app.command()(serve)
app.command()(export)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Replace keys of the file, e.g. training.seed=7 (value: YAML)."
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        min=1,
        help="Runs to train side by side on this machine: they share its cores, and each needs memory of its own. "
        "What a run prints goes to a log beside its folder.",
    ),
]
NumProcesses = Annotated[int, typer.Option("--nproc", min=1, help="Processes to start on this machine.")]


def _say_version(asked: bool) -> None:
    if asked:
        from cetnet.trainer.versions import installed_versions

        python = ".".join(map(str, sys.version_info[:3]))
        others = ", ".join(f"{name} {value}" for name, value in installed_versions().items())
        typer.echo(f"cetnet {cetnet.__version__}\npython {python}, {others}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_say_version,
            is_eager=True,
            help="Versions of this program and of what it stands on.",
        ),
    ] = False,
) -> None:
    """What comes before a command."""
    if context.invoked_subcommand in ("prepare", "generate", "launch"):
        # polars, once it is imported, takes SIGINT from its default action, but not from a handler of Python's.
        # TorchX ends what it has started.
        context.with_resource(cleaning_up())


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(help="Experiment file (YAML); `cetnet config` explains every key.")
    ],
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the newest checkpoint in run_dir, on any world size; start if there is none.",
        ),
    ] = False,
    pause_at: Annotated[
        int | None,
        typer.Option(
            "--pause-at",
            metavar="STEP",
            min=1,
            help="After this step write a checkpoint and end, with code 0; --resume goes on as if unbroken.",
        ),
    ] = None,
    nproc: NumProcesses = 1,
) -> None:
    """Train a model for one epoch; alone, with --nproc, or under torchrun.

    SIGTERM or SIGUSR1 to any process: finish the step, write a checkpoint, exit
    with code 75 ("try again"). A second one, 5 seconds later: exit at once.
    What torchrun starts again resumes by itself.
    """
    from cetnet.trainer.check_settings import check_settings
    from cetnet.trainer.config import parse_config, read_settings
    from cetnet.trainer.files import readable_twice
    from cetnet.trainer.run_folder import restarted

    config = readable_twice(config)
    content = read_settings(config, overrides)
    settings = parse_config(content, config, resolve=False)
    resume = resume or restarted(settings.run_dir)
    is_launcher = nproc > 1 and "RANK" not in os.environ
    processes = nproc if is_launcher else world_size()
    dataset = check_settings(settings, processes, resume)
    # From here on torch is needed, which takes seconds to load.
    if is_launcher:
        options = [*(["--resume"] if resume else []), *(["--pause-at", str(pause_at)] if pause_at else [])]
        arguments = ["train", str(config), *(overrides or []), *options]
        _launch(arguments, nproc, partial(_check_training, content, config, nproc, resume))
    check_loading()
    from cetnet.trainer.check_run import check_model
    from cetnet.trainer.processes.distributed import process_group
    from cetnet.trainer.train import train

    run = check_model(parse_config(content, config), dataset, resume)
    with process_group(run.config.training.device, run.config.training.timeout_minutes) as group:
        train(replace(run, pause_at=pause_at), group)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="Experiment file.")],
    overrides: Overrides = None,
    cluster: Annotated[
        str,
        typer.Option(
            metavar="SHAPE|FILE",
            help="Hosts x GPUs and their kind, such as 64x8:h100, or a YAML file with nodes, gpus_per_node, gpu "
            "and any key of sharding.cluster. Kinds: v100, t4, l4, a100-40gb, a100-80gb, h100, h200, b200.",
        ),
    ] = "1x1",
    schema: Annotated[
        Path | None, typer.Option(help="A schema.yaml; default: that of data.path. No data is read.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST..LAST",
            help="Instead, compare clusters, such as 1x8..128x8: each single model and the ensemble; hosts double.",
        ),
    ] = None,
    batch_per_gpu: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of a GPU and step, instead of data.batch_size over all of them."),
    ] = None,
    plot: Annotated[Path, typer.Option(help="Where --sweep draws its plot.")] = Path("sweep.png"),
    json: Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")] = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="What the ranks compute on.")] = "cuda",
) -> None:
    """Where each table would go on a cluster, why, and what a step would cost: estimated here, without it."""
    from cetnet.trainer.config import parse_config, read_settings
    from cetnet.trainer.data.dataset import load_schema, read_schema
    from cetnet.trainer.files import check_writable
    from cetnet.trainer.plan.cluster_options import read_cluster, read_sweep

    content = read_settings(config, overrides)
    data = parse_config(content, config, resolve=False).data
    target = read_cluster(cluster)
    clusters = read_sweep(sweep, target) if sweep else []
    for out in [json, plot if clusters else None]:
        if out:
            check_writable(out)
    if schema is None and not (data.path / "schema.yaml").exists():
        raise UserError(
            f"{data.path / 'schema.yaml'}: not found; name one with --schema FILE, or make the dataset with "
            "`cetnet prepare`"
        )
    features = read_schema(schema) if schema else load_schema(data.path)
    # From here on torch is needed, which takes seconds to load.
    check_loading()
    from cetnet.trainer.plan.report import plan_cluster, plan_sweep

    settings = parse_config(content, config)
    if clusters:
        from cetnet.trainer.plan.plot import check_plot, plot_sweep

        check_plot(plot)
        results = plan_sweep(settings, features, clusters, device, batch_per_gpu, json)
        plot_sweep(results, f"{config.stem} on {clusters[0].gpu or 'GPUs'}", plot)
        typer.echo(f"{plot}: step time, memory and scaling efficiency")
    else:
        plan_cluster(settings, features, target, device, batch_per_gpu, json)


@app.command()
def calibrate(
    out: Annotated[Path | None, typer.Option(help="YAML file to write, for `sharding.cluster`.")] = None,
    embedding_dim: Annotated[
        int, typer.Option(min=4, help="Embedding size of the tables looked up; a multiple of 4.")
    ] = 64,
    megabytes: Annotated[
        float,
        typer.Option(min=0.001, help="Buffer of a collective: a step's embeddings on one process, about."),
    ] = 8.0,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What is measured.")] = "auto",
    nproc: NumProcesses = 1,
) -> None:
    """Measure memory and network of this cluster, so that the planner's estimates fit it.

    On one machine with --nproc; on several hosts under torchrun, as `train`.
    --nproc 1 tells nothing of the network, one host nothing of the network
    between hosts.
    """
    if embedding_dim % 4:
        raise UserError(f"--embedding-dim {embedding_dim} is not a multiple of 4")
    if out is not None:
        from cetnet.trainer.files import check_writable

        check_writable(out)
    if nproc > 1 and "RANK" not in os.environ:
        options = ["--embedding-dim", str(embedding_dim), "--megabytes", str(megabytes), "--device", device]
        _launch(["calibrate", *options, *(["--out", str(out)] if out else [])], nproc)
    check_loading()
    from cetnet.trainer.processes.distributed import process_group

    with process_group(device) as processes:
        from cetnet.trainer.plan.calibrate import calibrate as run
        from cetnet.trainer.plan.calibrate import report

        cluster, measured = run(processes, embedding_dim, megabytes)
        if processes.is_main:
            report(cluster, measured, processes, out)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="Study file (YAML): a base configuration, variants, seeds.")],
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Report what is finished; train nothing.")
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke", help="Train each variant for 2 steps on random rows, into runs/smoke/<name>."
        ),
    ] = False,
    jobs: Jobs = 1,
) -> None:
    """Train variants x seeds (only what is missing) and write their report."""
    if smoke and report_only:
        raise UserError("--smoke and --report-only exclude each other")
    if jobs > 1 and (smoke or report_only):
        raise UserError("--jobs is for training: it goes neither with --smoke nor with --report-only")
    if smoke:
        from cetnet.benchmarks.study.smoke import smoke_study

        with cleaning_up():
            smoke_study(file)
        return
    from cetnet.benchmarks.study.run import report_study, run_study
    from cetnet.trainer.processes.signals import pass_on_signals

    pass_on_signals(SIGHUP)
    with cleaning_up():
        if report_only:
            report_study(file)
        else:
            from cetnet.benchmarks.study.check import check_runs, check_study

            check_study(file)
            run_study(file, run_in_fork, check_runs, jobs=jobs)


@app.command()
def tune(
    file: Annotated[Path, typer.Argument(help="Study file (YAML) with a `tune` section.")],
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Report how far it is; train nothing.")
    ] = False,
    jobs: Jobs = 1,
) -> None:
    """Choose settings for each variant of a study, on validation, with an equal budget.

    Trials are stopped early, one of three goes on (`tune.eta`). Ended or
    killed, the command goes on where it was when it is started again. Settings
    go to <study folder>/tune/variants.yaml, for a study's `variants`.
    """
    from cetnet.benchmarks.tune.check import check_optuna, check_tuning, component_fields
    from cetnet.trainer.processes.signals import pass_on_signals

    check_optuna()
    pass_on_signals(SIGHUP)
    with cleaning_up():
        if not report_only:
            check_tuning(file)
        from cetnet.benchmarks.study.check import check_runs
        from cetnet.benchmarks.study.definition import Study
        from cetnet.benchmarks.study.jobs import Jobs as Pool
        from cetnet.benchmarks.tune.run import tune_study
        from cetnet.trainer.processes.launcher import share_cores

        if jobs > 1:
            os.environ |= share_cores(Study.load(file).nproc * jobs)

        tune_study(
            file,
            lambda _, console: Pool(run_in_fork, console),
            component_fields,
            check_runs,
            jobs=jobs,
            report_only=report_only,
        )


@app.command()
def config(
    component: Annotated[
        str | None, typer.Argument(help="A kind of component, or a class's dotted path: show its keys.")
    ] = None,
) -> None:
    """All keys of an experiment file, with their defaults, and the components it may name."""
    from cetnet.trainer.config import RunConfig
    from cetnet.trainer.config_keys import component_table, reference_table
    from cetnet.trainer.console import output

    if component is None:
        output.print(*reference_table(RunConfig), sep="\n")
        return
    try:
        output.print(component_table(component))
    except ValueError as error:
        raise UserError(str(error)) from None


@app.command()
def examples(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to; default: here.")] = Path(),
) -> None:
    """Write configs/ and benchmarks/studies/, the files that the documentation's commands name."""
    from cetnet.trainer.examples import FOLDERS, write_examples

    count = write_examples(folder)
    typer.echo(
        f"{count} files written to {' and '.join(str(folder / name) for name in FOLDERS)}. Next, in {folder}:"
    )
    typer.echo(
        "cetnet prepare synthetic --out data/demo --rows 400000; cetnet study benchmarks/studies/demo.yaml"
    )


def _check_training(content: dict[str, Any], config: Path, nproc: int, resume: bool) -> None:
    from cetnet.trainer.check_run import check_run
    from cetnet.trainer.config import parse_config

    check_run(parse_config(content, config), nproc, resume)


def _launch(arguments: list[str], nproc: int, check: Callable[[], object] | None = None) -> None:
    from cetnet.trainer.processes.launcher import launch

    raise typer.Exit(launch(main, arguments, nproc, check))


add_evaluate(app, _launch)
add_predict(app, _launch)
add_explain(app, _launch)


def run_in_fork(arguments: list[str]) -> None:
    """Be `cetnet ARGUMENTS` in a process forked for it, as a study's runs are."""
    from cetnet.trainer.processes.launcher import run_forked

    run_forked(main, arguments)


def main() -> None:
    """The command line in this process: whatever ends it is one line on stderr, and its exit code.

    A user's mistake, and what a disk, a name server or a library's parser did, is 2, a fault of the program 1.
    """
    quieten()
    install_hooks()
    run_told(_run_recorded if "TORCHELASTIC_ERROR_FILE" in os.environ else _run)


def _run_recorded() -> None:
    """Under torchrun, which reports what is written to that file."""
    from torch.distributed.elastic.multiprocessing.errors import record

    record(_run)()


def _run() -> None:
    try:
        _check_working_directory()
        check_threads()
        if DISTRIBUTED & set(sys.argv[1:2]):
            check_environment()
        if ({"plan", "export"} | DISTRIBUTED) & set(sys.argv[1:2]):
            check_versions()
        app()
    except UserError as error:
        sys.exit(tell(error))


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory is gone; change to one that exists") from None


if __name__ == "__main__":
    main()
