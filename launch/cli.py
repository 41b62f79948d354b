"""`cetnet launch`: a job as a plain script or manifest, and studies as one job per run.

Heavy libraries are imported inside the commands, as in `cetnet.trainer.cli`.
"""

import re
import shlex
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from cetnet.models.rules import indivisible
from cetnet.trainer.errors import UserError

if TYPE_CHECKING:
    from cetnet.launch.render import Job
    from cetnet.launch.serving import Service
    from cetnet.trainer.config import RunConfig

app = typer.Typer(
    help="Run on a cluster: plain job files, and studies as many jobs. Single jobs through TorchX: "
    "`torchx run -s SCHEDULER cetnet.train --help`.",
    no_args_is_help=True,
)
render_app = typer.Typer(
    help="Write the job that trains FILE, or what serves DIR, as a file that needs neither TorchX nor this program.",
    no_args_is_help=True,
)
app.add_typer(render_app, name="render")

Config = Annotated[Path, typer.Argument(help="Experiment file (YAML).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace keys of the file.")
]
Shape = Annotated[
    str,
    typer.Option("-j", help="Nodes x processes of a node, 4x8; 2:4x8 takes what it gets from 2 to 4 nodes."),
]
Cpu = Annotated[int | None, typer.Option(min=1, help="Cores of a node. Default: one a process.")]
Gpu = Annotated[int, typer.Option(min=0, help="GPUs of a node.")]
Memory = Annotated[
    str | None,
    typer.Option("--mem", help="Memory of a node, 96G or 500M; left out, the scheduler decides."),
]
Time = Annotated[str | None, typer.Option("--time", help="Time limit: minutes, HH:MM:SS or DAYS-HH:MM:SS.")]
Retries = Annotated[
    int, typer.Option(min=0, help="How often a failed job is started again; it resumes each time.")
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME=VALUE", help="Environment, e.g. NCCL_SOCKET_IFNAME=ib0; repeatable."),
]
Name = Annotated[str, typer.Option(help="Name of the job.")]
Out = Annotated[Path | None, typer.Option("--out", help="File to write. Default: the terminal.")]


@render_app.command()
def slurm(
    config: Config,
    overrides: Overrides = None,
    shape: Shape = "1x1",
    cpu: Cpu = None,
    gpu: Gpu = 0,
    memory: Memory = None,
    time: Time = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=VALUE", help="More of sbatch's options: account=ads, exclusive=; repeatable."
        ),
    ] = None,
    retries: Retries = 0,
    env: Env = None,
    name: Name = "cetnet",
    python: Annotated[
        str,
        typer.Option(help="Interpreter with the project, on every node.", show_default="this one"),
    ] = sys.executable,
    out: Out = None,
) -> None:
    """An sbatch script: no heterogeneous job, no accounting; the nodes share a file system.

    Example: cetnet launch render slurm configs/cetnet.yaml data.lanes=32 -j 4x8 --gpu 8 --retries 3 --out job.sh
    """
    from cetnet.launch.render import slurm_script

    job, _ = _job(config, overrides, shape, cpu, gpu, memory, time, retries, env, name)
    options = _pairs("sbatch", sbatch)
    text = slurm_script(job, python=python, folder=Path.cwd(), partition=partition, options=options)
    _write(text, out)


@render_app.command()
def kubernetes(
    config: Config,
    image: Annotated[str, typer.Option(help="Container image; launch/Dockerfile builds one.")],
    overrides: Overrides = None,
    mount: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLAIM:/PATH[:ro]",
            help="Persistent volume for data or runs; shared by all pods; repeatable.",
        ),
    ] = None,
    shape: Shape = "1x1",
    cpu: Cpu = None,
    gpu: Gpu = 0,
    memory: Memory = None,
    disk: Annotated[int, typer.Option(min=1, help="Ephemeral storage of a pod, GiB.")] = 10,
    time: Time = None,
    queue: Annotated[str | None, typer.Option(help="Kueue's LocalQueue.")] = None,
    retries: Retries = 0,
    env: Env = None,
    name: Name = "cetnet",
    out: Out = None,
) -> None:
    """An indexed Job with its headless Service; the experiment file travels in a ConfigMap.

    Example: cetnet launch render kubernetes configs/cetnet.yaml data.lanes=32 data.path=/data/a run_dir=/runs/a
    --image registry.example/cetnet:1 --mount clicks:/data:ro --mount runs:/runs -j 4x8 --gpu 8 | kubectl apply -f -
    """
    from cetnet.launch.render import Mount, kubernetes_manifests

    job, settings = _job(config, overrides, shape, cpu, gpu, memory, time, retries, env, name)
    text = kubernetes_manifests(
        job,
        image=image,
        mounts=[Mount.parse(text) for text in mount or []],
        run_dir=settings.run_dir,
        disk=disk,
        queue=queue,
    )
    _write(text, out)


Folder = Annotated[
    str, typer.Argument(metavar="DIR", help="An export, or a folder of exports, on one of the mounts.")
]
ServeImage = Annotated[
    str,
    typer.Option(help="Container image; launch/Dockerfile builds one with --build-arg SERVE=serve."),
]
Replicas = Annotated[int, typer.Option(min=1, help="Pods.")]
PodCpu = Annotated[int, typer.Option(min=1, help="Cores of a pod, and threads of its model.")]
Mounts = Annotated[
    list[str] | None,
    typer.Option(metavar="CLAIM:/PATH[:ro]", help="Persistent volume with the exports; repeatable."),
]
ServeOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--serve", metavar="OPTION=VALUE", help="Of `cetnet serve`: max-batch-rows=256; repeatable."
    ),
]


@render_app.command()
def deployment(
    folder: Folder,
    image: ServeImage,
    mount: Mounts = None,
    replicas: Replicas = 1,
    cpu: PodCpu = 2,
    memory: Memory = "4G",
    serve: ServeOptions = None,
    name: Name = "cetnet",
    out: Out = None,
) -> None:
    """`cetnet serve DIR` as a plain Deployment and its Service; a new export in DIR is swapped in without a new pod.

    Example: cetnet launch render deployment /exports/clicks --image registry.example/cetnet:1
    --mount exports:/exports:ro --replicas 2 | kubectl apply -f -
    """
    from cetnet.launch.serving import deployment_manifests

    _write(deployment_manifests(_service(folder, image, mount, replicas, cpu, memory, serve, name)), out)


@render_app.command()
def inferenceservice(
    folder: Folder,
    image: ServeImage,
    mount: Mounts = None,
    replicas: Replicas = 1,
    cpu: PodCpu = 2,
    memory: Memory = "4G",
    serve: ServeOptions = None,
    name: Name = "cetnet",
    out: Out = None,
) -> None:
    """`cetnet serve DIR` as an InferenceService of KServe, which must be in the cluster; HTTP only.

    Example: cetnet launch render inferenceservice /exports/clicks --image registry.example/cetnet:1
    --mount exports:/exports:ro | kubectl apply -f -
    """
    from cetnet.launch.serving import inference_service

    _write(inference_service(_service(folder, image, mount, replicas, cpu, memory, serve, name)), out)


StudyFile = Annotated[Path, typer.Argument(help="Study file (YAML).")]
Scheduler = Annotated[str, typer.Option("-s", "--scheduler", help="slurm, kubernetes, aws_batch, ...")]
SchedulerArgs = Annotated[
    str,
    typer.Option(
        "-cfg",
        "--scheduler-args",
        help="The scheduler's options, partition=gpu,time=60; see `torchx runopts`.",
    ),
]
RunShape = Annotated[
    str | None,
    typer.Option("-j", help="Nodes x processes of each run. Default: one node, the study's `nproc`."),
]
TorchxMounts = Annotated[
    str, typer.Option("--mount", help="As TorchX has it: type=volume,src=CLAIM,dst=/PATH,...")
]
Image = Annotated[str, typer.Option(help="Container image, where the scheduler uses one.")]


@app.command()
def study(
    file: StudyFile,
    scheduler: Scheduler,
    cfg: SchedulerArgs = "",
    shape: RunShape = None,
    cpu: Cpu = None,
    gpu: Gpu = 0,
    memory: Memory = None,
    mounts: TorchxMounts = "",
    image: Image = "",
    retries: Retries = 0,
    env: Env = None,
    dryrun: Annotated[bool, typer.Option("--dryrun", help="Show the jobs; submit nothing.")] = False,
) -> None:
    """Submit each missing run of a study as a job of its own, through TorchX.

    Started again, it submits what has failed since, resuming it; `cetnet study FILE --report-only` reports.
    """
    from cetnet.benchmarks.study.check import check_configurations
    from cetnet.benchmarks.study.definition import Study, runs_of
    from cetnet.launch.cluster import Resources
    from cetnet.launch.submit import submit_study

    study = Study.load(file)
    check_configurations(study, runs_of(study, file), file)
    resources = Resources(shape, cpu, gpu, _mebibytes(memory), mounts, image, retries, _pairs("env", env))
    submit_study(file, scheduler, cfg, resources, dryrun=dryrun)


@app.command()
def tune(
    file: Annotated[Path, typer.Argument(help="Study file (YAML) with a `tune` section.")],
    scheduler: Scheduler,
    cfg: SchedulerArgs = "",
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Jobs under way at a time, waiting ones included.")
    ] = 8,
    shape: RunShape = None,
    cpu: Cpu = None,
    gpu: Gpu = 0,
    memory: Memory = None,
    mounts: TorchxMounts = "",
    image: Image = "",
    retries: Retries = 0,
    env: Env = None,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the jobs.")] = 15.0,
    dryrun: Annotated[
        bool, typer.Option("--dryrun", help="Show the first job of each variant; submit nothing.")
    ] = False,
) -> None:
    """Choose settings as `cetnet tune` does, each trial being a job up to the rung where it is compared.

    It waits for the jobs, and ends with the files of `cetnet tune`. The study's
    folder must be the same here and in the jobs. Ended or killed, the command
    leaves its jobs alone; started again, it finds them, and goes on.

    Example: cetnet launch tune study.yaml -s slurm -cfg partition=gpu,time=60 --jobs 8 -j 1x4 --gpu 4
    """
    from cetnet.benchmarks.tune.check import check_optuna, check_tuning
    from cetnet.launch.cluster import Resources

    check_optuna()
    check_tuning(file)
    from cetnet.launch.trials import tune_as_jobs

    resources = Resources(shape, cpu, gpu, _mebibytes(memory), mounts, image, retries, _pairs("env", env))
    tune_as_jobs(file, scheduler, cfg, resources, jobs=jobs, poll=poll, dryrun=dryrun)


def _job(
    config: Path,
    overrides: list[str] | None,
    shape: str,
    cpu: int | None,
    gpu: int,
    memory: str | None,
    time: str | None,
    retries: int,
    env: list[str] | None,
    name: str,
) -> tuple["Job", "RunConfig"]:
    """The job that the options describe, and the experiment it runs, both checked."""
    from cetnet.launch.render import Job
    from cetnet.trainer.config import load_config

    settings = load_config(config, overrides)
    least, most, nproc = _shape(shape)
    data = settings.data
    for nodes in range(least, most + 1):
        if complaint := indivisible(
            batch_size=data.batch_size,
            lanes=data.shuffled_lanes,
            world_size=nodes * nproc,
            ranks=f"{nodes} x {nproc} processes",
        ):
            raise UserError(complaint)
    mebibytes = _mebibytes(memory)
    arguments = [str(config), *(overrides or [])]
    if mebibytes and settings.sharding.cluster.ddr_gb is None:
        # The planner would take all of the host's memory for the job's.
        arguments.append(f"sharding.cluster.ddr_gb={mebibytes / 1024 / nproc:g}")
    job = Job(
        arguments=arguments,
        name=name,
        nodes=(least, most),
        nproc=nproc,
        cpu=cpu or nproc,
        gpu=gpu,
        memory=mebibytes,
        minutes=_minutes(time),
        retries=retries,
        env=_pairs("env", env),
        command=shlex.join(["cetnet", *sys.argv[1:]]),
    )
    return job, settings


def _service(
    folder: str,
    image: str,
    mounts: list[str] | None,
    replicas: int,
    cpu: int,
    memory: str | None,
    options: list[str] | None,
    name: str,
) -> "Service":
    """What the options say of serving, checked."""
    from cetnet.launch.render import Mount
    from cetnet.launch.serving import Service

    return Service(
        folder=PurePosixPath(folder),
        image=image,
        mounts=[Mount.parse(text) for text in mounts or []],
        name=name,
        replicas=replicas,
        cpu=cpu,
        memory=_mebibytes(memory) or 4096,
        arguments=tuple(f"--{key}={value}" for key, value in _pairs("serve", options).items()),
        command=shlex.join(["cetnet", *sys.argv[1:]]),
    )


def _shape(text: str) -> tuple[int, int, int]:
    """Smallest and largest number of nodes and processes of a node, of `4x8` or `2:4x8`."""
    match = re.fullmatch(r"(?:(\d+):)?(\d+)x(\d+)", text)
    least, most, nproc = (int(n) for n in (match[1] or match[2], match[2], match[3])) if match else (0, 0, 0)
    if not 1 <= least <= most or nproc < 1:
        raise UserError(f"-j {text}: nodes x processes of a node are expected, 4x8 or 2:4x8")
    return least, most, nproc


def _mebibytes(text: str | None) -> int | None:
    if text is None:
        return None
    from pydantic import ByteSize, TypeAdapter

    if not re.fullmatch(r"[1-9]\d*[MG]", text):
        raise UserError(f"--mem {text}: a number with M or G is expected, such as 96G")
    return int(TypeAdapter(ByteSize).validate_python(f"{text}iB").to("MiB"))


def _minutes(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)|(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match is None:
        raise UserError(f"--time {text}: minutes, HH:MM:SS or DAYS-HH:MM:SS are expected")
    minutes, days, hours, rest, seconds = (int(part or 0) for part in match.groups())
    return minutes + (days * 24 + hours) * 60 + rest + (seconds > 0) or None


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UserError(f"--{option} {text!r} is not of the form NAME=VALUE")
        pairs[key] = value
    return pairs


def _write(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    from cetnet.trainer.files import check_writable, output_file

    check_writable(out)
    with output_file(out) as aside:
        aside.write_text(text, encoding="utf-8", errors="surrogateescape")  # a path in it may be any bytes
    typer.echo(f"{out}: written", err=True)
