"""The command line: `cetnet prepare | generate | train | evaluate | predict | plan | calibrate | study | ...`.

Heavy libraries are imported inside the commands, so that `--help` and mistakes answer at once.
"""

import logging
import os
import shlex
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from launch.cli import app as launch_app
from trainer.errors import UserError

app = typer.Typer(
    help="Train and compare click-through-rate ensembles on TorchRec.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prepare_app = typer.Typer(
    help="Turn raw click logs into Parquet, schema.yaml and a data card (README.md).", no_args_is_help=True
)
generate_app = typer.Typer(
    help="Write files in exactly the raw format of a public dataset, for trying its preparation at any size.",
    no_args_is_help=True,
)
app.add_typer(prepare_app, name="prepare")
app.add_typer(generate_app, name="generate")
app.add_typer(launch_app, name="launch")

Out = Annotated[Path, typer.Option(help="Directory that receives the dataset; must not exist.")]
Raw = Annotated[Path, typer.Option(help="Directory (or file) with the raw data.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]
Seed = Annotated[int, typer.Option(help="Seed of the split, and of what is drawn.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Replace keys of the file, e.g. training.seed=7 (value: YAML)."
    ),
]
NumProcesses = Annotated[int, typer.Option("--nproc", min=1, help="Processes to start on this machine.")]


SequenceSplit = Annotated[
    Literal["clean", "bars"],
    typer.Option(
        help="clean: validation is held out of train. bars: validation is the test rows again, which tunes on test: "
        "only for parity with published results."
    ),
]
Keep = Annotated[
    Literal["oldest", "recent"], typer.Option(help="Which 100 items of a history; published: oldest.")
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Limit for all processes together, such as 4GB; default: half of the machine's. With --scheduler: for "
        "each of its workers; default: their own.",
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="tcp://HOST:8786",
        help="Dask scheduler whose workers do the work; they must see the same files.",
    ),
]


@prepare_app.command()
def amazon(
    raw: Raw,
    category: Annotated[str, typer.Option(help="Such as Electronics: it is in the files' names.")],
    out: Out,
    split: SequenceSplit = "clean",
    max_length: Annotated[int, typer.Option(min=1, help="Items of a history that are kept.")] = 50,
    keep: Annotated[
        Literal["recent", "oldest"],
        typer.Option(help="Which of them; the oldest 100 for parity with published results."),
    ] = "recent",
    attributes: Annotated[
        bool, typer.Option("--attributes", help="Add all attributes of the item, multi-valued.")
    ] = False,
    seed: Seed = 1,
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Amazon reviews of any category: a positive and a random negative row for each item of each user.

    RAW has reviews_<category>_5.json and meta_<category>.json (or .json.gz), or
    <category>.txt and <category>_item2attributes.json.
    """
    from trainer.prepare.amazon import prepare_amazon

    engine = _engine(memory, workers, scheduler, overwrite)
    prepare_amazon(raw, category, out, split, max_length, keep, attributes, seed, **engine)
    _prepared(out)


Split = Annotated[
    Literal["published", "time"],
    typer.Option(
        help="published: the protocol's own, at random. time: 80/10/10 in order of time, from the challenge's file "
        "only; nothing later is known to train, or to what is tuned on validation."
    ),
]


@prepare_app.command("amazon_electronics")
def amazon_electronics(
    raw: Raw,
    out: Out,
    split: SequenceSplit = "clean",
    keep: Keep = "oldest",
    seed: Seed = 1,
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Amazon Electronics with published settings: a positive and a random negative row for each review.

    RAW has reviews_Electronics_5.json and meta_Electronics.json (or .json.gz), or
    train.csv and test.csv of AmazonElectronics_x1.
    """
    engine = _engine(memory, workers, scheduler, overwrite)
    if (raw / "train.csv").exists():
        from trainer.prepare.repacked import prepare_amazon_electronics_x1

        prepare_amazon_electronics_x1(raw, out, split, keep, **engine)
    else:
        from trainer.prepare.amazon import prepare_amazon

        prepare_amazon(raw, "Electronics", out, split, 100, keep, seed=seed, **engine)
    _prepared(out)


@prepare_app.command()
def avazu(
    raw: Annotated[
        Path,
        typer.Option(
            help="train.csv of the Kaggle challenge, or the directory with train.csv, valid.csv and test.csv of "
            "Avazu_x1 or Avazu_x4."
        ),
    ],
    out: Out,
    protocol: Annotated[
        Literal["multi_embedding", "x4_001", "x4_002", "x1"] | None,
        typer.Option(
            help="multi_embedding: that of CETNet's tables 4 and 5, min_count 4, default for the challenge's file. "
            "x4_001, x4_002: BARS, min_count 2 and 1; also from the challenge's file. x1: BARS, from its own files."
        ),
    ] = None,
    split: Split = "published",
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Avazu: clicks on mobile ads, 22 categorical fields (24 in x4)."""
    from trainer.prepare.avazu import prepare_avazu

    prepare_avazu(raw, out, protocol, split, **_engine(memory, workers, scheduler, overwrite))
    _prepared(out)


@prepare_app.command()
def criteo(
    raw: Annotated[
        Path,
        typer.Option(
            help="train.txt of the Kaggle challenge, or the directory with train.csv, valid.csv and test.csv of "
            "Criteo_x1 or Criteo_x4."
        ),
    ],
    out: Out,
    protocol: Annotated[
        Literal["multi_embedding", "x4_001", "x4_002", "x1"] | None,
        typer.Option(
            help="multi_embedding: that of CETNet's tables 4 and 5, min_count 10, default for the challenge's file. "
            "x4_001, x4_002: BARS, min_count 10 and 2; also from the challenge's file. x1: BARS, from its own files."
        ),
    ] = None,
    split: Split = "published",
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Criteo: clicks on display ads, 13 counts (in buckets, but for x1) and 26 categorical fields."""
    from trainer.prepare.criteo import prepare_criteo

    prepare_criteo(raw, out, protocol, split, **_engine(memory, workers, scheduler, overwrite))
    _prepared(out)


@prepare_app.command("criteo_1tb")
def criteo_1tb(
    raw: Annotated[Path, typer.Option(help="Directory with day_0.gz ... day_23.gz, packed or not.")],
    out: Out,
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Criteo's terabyte: days 0 to 22 train, the halves of day 23 validation and test; ids modulo table sizes."""
    from trainer.prepare.criteo import prepare_criteo_1tb

    prepare_criteo_1tb(raw, out, **_engine(memory, workers, scheduler, overwrite))
    _prepared(out)


@prepare_app.command()
def ebnerd(
    raw: Raw,
    out: Out,
    split: Annotated[
        Literal["random", "time"], typer.Option(help="Impressions at random 80/10/10, or in order of time.")
    ] = "random",
    history_length: Annotated[int, typer.Option(min=1, help="Most recent articles kept.")] = 50,
    dense: Annotated[
        bool, typer.Option("--dense", help="Add counts of earlier clicks and exposures.")
    ] = False,
    seed: Seed = 1,
    overwrite: Overwrite = False,
) -> None:
    """EB-NeRD: Danish news, a row per (impression, shown article), with reading histories."""
    from trainer.prepare.ebnerd import prepare_ebnerd

    prepare_ebnerd(raw, out, split, history_length, dense, overwrite, seed, _command())
    _prepared(out)


@prepare_app.command()
def frappe(raw: Raw, out: Out, overwrite: Overwrite = False) -> None:
    """Frappe_x1: app usage in 10 categorical fields, from the libfm or the CSV files."""
    if (raw / "train.csv").exists():
        from trainer.prepare.repacked import prepare_frappe_x1

        prepare_frappe_x1(raw, out, overwrite=overwrite, command=_command())
    else:
        from trainer.prepare.frappe import prepare_frappe

        prepare_frappe(raw, out, overwrite, _command())
    _prepared(out)


@prepare_app.command()
def kuaivideo(
    raw: Raw,
    out: Out,
    split: SequenceSplit = "clean",
    keep: Keep = "oldest",
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """KuaiVideo: clicks on short videos with two histories and vectors of the pictures.

    RAW has dataset.pkl and visual64_select.npy of ALPINE, or train.csv, test.csv
    and item_visual_emb_dim64.h5 of KuaiVideo_x1.
    """
    engine = _engine(memory, workers, scheduler, overwrite)
    if (raw / "train.csv").exists():
        from trainer.prepare.repacked import prepare_kuaivideo_x1

        if keep == "recent":
            raise UserError("--keep recent: KuaiVideo_x1 has the oldest 100 items only; use ALPINE's files")
        prepare_kuaivideo_x1(raw, out, split, **engine)
    else:
        from trainer.prepare.kuaivideo import prepare_kuaivideo

        prepare_kuaivideo(raw, out, split, keep, **engine)
    _prepared(out)


@prepare_app.command()
def movielens(
    raw: Raw,
    out: Out,
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """MovielensLatest_x1: tags of films in 3 categorical fields; train.csv, valid.csv and test.csv."""
    from trainer.prepare.repacked import prepare_movielens

    prepare_movielens(raw, out, **_engine(memory, workers, scheduler, overwrite))
    _prepared(out)


@prepare_app.command()
def synthetic(
    out: Out,
    rows: Annotated[int, typer.Option(min=1, help="Rows in all splits together.")] = 300_000,
    seed: Seed = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result doesn't depend on it.")] = (
        os.cpu_count() or 1
    ),
    overwrite: Overwrite = False,
) -> None:
    """A click log drawn from a known model, so that the best possible NE is known."""
    from trainer.prepare.synthetic import prepare_synthetic

    prepare_synthetic(out, rows, seed, workers=workers, overwrite=overwrite, command=_command())
    _prepared(out)


@prepare_app.command()
def synthetic_fields(
    out: Out,
    rows: Annotated[int, typer.Option(min=1, help="Rows in all splits together.")] = 1_250_000,
    seed: Seed = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result doesn't depend on it.")] = (
        os.cpu_count() or 1
    ),
    overwrite: Overwrite = False,
) -> None:
    """A click log of a dozen long-tailed id fields, for studies of embedding sizes."""
    from trainer.prepare.synthetic_fields import prepare_synthetic_fields

    prepare_synthetic_fields(out, rows, seed, workers=workers, overwrite=overwrite, command=_command())
    _prepared(out)


@prepare_app.command()
def random(
    schema: Annotated[Path, typer.Option(help="A schema.yaml: of a prepared dataset, or your own.")],
    rows: Annotated[int, typer.Option(min=10, help="Rows in all splits together.")],
    out: Out,
    max_table_rows: Annotated[
        int | None, typer.Option(min=1, help="Cut larger tables to this, for a small smoke run.")
    ] = None,
    seed: Seed = 1,
    overwrite: Overwrite = False,
) -> None:
    """Random rows in any schema, with labels that can be learned: for smoke runs."""
    from trainer.prepare.random import prepare_random

    prepare_random(schema, rows, out, max_table_rows, overwrite, seed, _command())
    _prepared(out)


@prepare_app.command("taobao_ad")
def taobao_ad(
    raw: Raw,
    out: Out,
    split: SequenceSplit = "clean",
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """TaobaoAd: ads with profiles and the user's last 50 behaviours.

    RAW has raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv, or
    train.csv and test.csv of TaobaoAd_x1.
    """
    engine = _engine(memory, workers, scheduler, overwrite)
    if (raw / "train.csv").exists():
        from trainer.prepare.repacked import prepare_taobao_ad_x1

        prepare_taobao_ad_x1(raw, out, split, **engine)
    else:
        from trainer.prepare.taobao import prepare_taobao_ad

        prepare_taobao_ad(raw, out, split, **engine)
    _prepared(out)


RawSchema = Annotated[
    Path, typer.Option("--schema", help="YAML that names columns and kinds; see the README.")
]
RowSplit = Annotated[
    str,
    typer.Option(
        help="random:0.8,0.1,0.1 or time:0.8,0.1,0.1; not used where RAW has train, validation and test files."
    ),
]


@prepare_app.command()
def csv(
    raw: Raw,
    out: Out,
    schema: RawSchema,
    split: RowSplit = "random:0.8,0.1,0.1",
    seed: Seed = 1,
    overwrite: Overwrite = False,
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Your own CSV files."""
    _prepare_tabular("csv", raw, out, schema, split, seed, overwrite, memory, workers, scheduler)


@prepare_app.command()
def parquet(
    raw: Raw,
    out: Out,
    schema: RawSchema,
    split: RowSplit = "random:0.8,0.1,0.1",
    seed: Seed = 1,
    overwrite: Overwrite = False,
    memory: Memory = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Your own Parquet files."""
    _prepare_tabular("parquet", raw, out, schema, split, seed, overwrite, memory, workers, scheduler)


def _prepare_tabular(
    source: Literal["csv", "parquet"],
    raw: Path,
    out: Path,
    schema: Path,
    split: str,
    seed: int,
    overwrite: bool,
    memory: str | None,
    workers: int | None,
    scheduler: str | None,
) -> None:
    from trainer.prepare.tabular import prepare_tabular

    prepare_tabular(source, raw, out, schema, split, overwrite, seed, _command(), memory, workers, scheduler)
    _prepared(out)


Rows = Annotated[int, typer.Option(min=1, help="Rows in all files together.")]
NewDirectory = Annotated[Path, typer.Option(help="Directory that receives the files; must not exist.")]
GeneratorSeed = Annotated[int, typer.Option(help="Seed of all that is drawn.")]
# what `cetnet generate` can write: the format, the module in trainer/prepare/generate, and the help
FORMATS = (
    ("amazon_electronics_x1", "sequences", "AmazonElectronics_x1: reviews with histories, two CSV files."),
    ("amazon_reviews", "amazon", "Amazon: reviews_Electronics_5.json and meta_Electronics.json."),
    ("avazu", "avazu", "Avazu: the Kaggle train.csv."),
    ("avazu_x1", "avazu", "Avazu_x1: three CSV files of numbered ids."),
    ("avazu_x4", "avazu", "Avazu_x4: the Kaggle columns in three CSV files."),
    ("criteo", "criteo", "Criteo: the Kaggle train.txt."),
    ("criteo_1tb", "criteo", "Criteo's terabyte: day_0.gz to day_23.gz."),
    ("criteo_x1", "criteo", "Criteo_x1: three CSV files of scaled counts and numbered ids."),
    ("criteo_x4", "criteo", "Criteo_x4: the Kaggle columns in three CSV files."),
    ("kuaivideo", "kuaivideo", "KuaiVideo: dataset.pkl, visual64_select.npy and user_like.npy of ALPINE."),
    ("kuaivideo_x1", "sequences", "KuaiVideo_x1: clicks on short videos with histories, two CSV files."),
    ("movielens_x1", "movielens", "MovielensLatest_x1: tags of films, three CSV files."),
    ("taobao_ad", "taobao", "TaobaoAd: samples, ads, users, and 27 behaviours a sample, four CSV files."),
    ("taobao_ad_x1", "sequences", "TaobaoAd_x1: ads with profiles and histories, two CSV files."),
)


def _add_generator(name: str, module: str, description: str) -> None:
    @generate_app.command(name, help=description)
    def generate(rows: Rows, out: NewDirectory, seed: GeneratorSeed = 1) -> None:
        generators = import_module(f"trainer.prepare.generate.{module}")
        getattr(generators, f"generate_{name}")(out, rows, seed)
        typer.echo(f"{out}: ready")


for _format in FORMATS:
    _add_generator(*_format)


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(help="Experiment file (YAML); `cetnet config` explains every key.")
    ],
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the newest checkpoint in run_dir, on any world size."),
    ] = False,
    nproc: NumProcesses = 1,
) -> None:
    """Train a model for one epoch; alone, with --nproc, or under torchrun."""
    from trainer.config import load_config
    from trainer.distributed import process_group, world_size

    settings = load_config(config, overrides)
    if nproc > 1 and "RANK" not in os.environ:
        _check_training(settings, nproc, resume)
        _launch(["train", str(config), *(overrides or []), *(["--resume"] if resume else [])], nproc)
    _check_training(settings, world_size(), resume)
    from trainer.train import train as run

    with process_group(settings.training.device) as processes:
        run(settings, processes, resume)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[Path, typer.Argument(help="A prepared dataset.")],
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    nproc: NumProcesses = 1,
) -> None:
    """Metrics of a trained model on a split: NE, AUC, gAUC, LogLoss, calibration."""
    if nproc > 1 and "RANK" not in os.environ:
        _check_scoring(run, data, split)
        _launch(["evaluate", str(run), str(data), "--split", split], nproc)
    from trainer.evaluate import evaluate_run

    evaluate_run(run, data, split)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[Path, typer.Argument(help="A prepared dataset.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    nproc: NumProcesses = 1,
) -> None:
    """Write the probabilities of the fused output and of every component, a row per row of the split."""
    if nproc > 1 and "RANK" not in os.environ:
        _check_scoring(run, data, split)
        _launch(["predict", str(run), str(data), "--out", str(out), "--split", split], nproc)
    from trainer.evaluate import predict_run

    predict_run(run, data, split, out)


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
    from trainer.config import load_config
    from trainer.dataset import load_schema, read_schema
    from trainer.plan import read_cluster, read_sweep
    from trainer.plan_report import plan_cluster, plan_sweep
    from trainer.run import check_writable

    settings = load_config(config, overrides)
    target = read_cluster(cluster)
    clusters = read_sweep(sweep, target) if sweep else []
    if json:
        check_writable(json)
    if schema is None and not (settings.data.path / "schema.yaml").exists():
        raise UserError(
            f"{settings.data.path / 'schema.yaml'}: not found; name one with --schema FILE, or make the dataset "
            "with `cetnet prepare`"
        )
    features = read_schema(schema) if schema else load_schema(settings.data.path)
    if clusters:
        from benchmarks.sweep import check_plot, plot_sweep

        check_plot(plot)
        check_writable(plot)
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
        from trainer.run import check_writable

        check_writable(out)
    if nproc > 1 and "RANK" not in os.environ:
        options = ["--embedding-dim", str(embedding_dim), "--megabytes", str(megabytes), "--device", device]
        _launch(["calibrate", *options, *(["--out", str(out)] if out else [])], nproc)
    from trainer.distributed import process_group

    with process_group(device) as processes:
        from trainer.calibrate import calibrate as run
        from trainer.calibrate import report

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
) -> None:
    """Train variants x seeds (only what is missing) and write their report."""
    if smoke and report_only:
        raise UserError("--smoke and --report-only exclude each other")
    if smoke:
        from benchmarks.smoke import smoke_study

        smoke_study(file)
        return
    from benchmarks.run_study import report_study, run_study

    (report_study if report_only else run_study)(file)


@app.command()
def config(
    component: Annotated[
        str | None, typer.Argument(help="A kind of component, or a class's dotted path: show its keys.")
    ] = None,
) -> None:
    """All keys of an experiment file, with their defaults, and the components it may name."""
    from trainer.config import RunConfig
    from trainer.errors import UserError
    from trainer.progress import output
    from trainer.reference import component_table, reference_table

    if component is None:
        output.print(*reference_table(RunConfig), sep="\n")
        return
    try:
        output.print(component_table(component))
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_training(settings: Any, world_size: int, resume: bool) -> None:
    from trainer.train import check_inputs

    check_inputs(settings, world_size, resume)


def _check_scoring(run: Path, data: Path, split: str) -> None:
    from trainer.evaluate import check_inputs

    check_inputs(run, data, split)


def _launch(arguments: list[str], nproc: int) -> None:
    from trainer.distributed import launch

    raise typer.Exit(launch(arguments, nproc))


def _command() -> str:
    """The command, for the data card; without the options that say how it runs, not what comes out."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        name, _, value = word.partition("=")
        if name not in ("--memory", "--workers", "--scheduler"):
            kept.append(word)
        elif not value:
            next(words, None)
    return shlex.join(["cetnet", *kept])


def _engine(
    memory: str | None, workers: int | None, scheduler: str | None, overwrite: bool
) -> dict[str, Any]:
    """The arguments that preparations hand on to `prepare_table`."""
    return {
        "memory": memory,
        "workers": workers,
        "scheduler": scheduler,
        "overwrite": overwrite,
        "command": _command(),
    }


def _prepared(out: Path) -> None:
    typer.echo(f"{out}: ready; the data card is {out / 'README.md'}")


def quieten() -> None:
    """Silence what the libraries say at import and in every step, and a user can do nothing about."""
    for module in ["torch", "torchrec", "fbgemm_gpu", "torchmetrics", "tensordict", "tensorboard", "torchx"]:
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")
    warnings.filterwarnings("ignore", message="Please use DTensor instead")
    for logger in ("torchrec", "torch.fx", "torch.distributed.checkpoint"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def main() -> None:
    """Entry point of `cetnet`: a user's mistake is one line on stderr and exit code 2."""
    quieten()
    from trainer.versions import check_versions

    try:
        if {"train", "evaluate", "predict", "plan", "calibrate"} & set(sys.argv[1:2]):
            check_versions()
        app()
    except UserError as error:
        print(f"cetnet: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
