"""`cetnet prepare`: a command for each dataset.

Heavy libraries are imported inside the commands, so that `--help` and mistakes answer at once.
"""

import os
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cetnet.trainer.errors import UserError

app = typer.Typer(
    help="Turn raw click logs into Parquet, schema.yaml and a data card (README.md).", no_args_is_help=True
)

Out = Annotated[
    Path, typer.Option(resolve_path=True, help="Directory that receives the dataset; must not exist.")
]
Raw = Annotated[Path, typer.Option(help="Directory (or file) with the raw data.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]
Seed = Annotated[int, typer.Option(help="Seed of the split, and of what is drawn.")]
Rows = Annotated[int, typer.Option(min=1, help="Rows in all splits together.")]
CORES = len(os.sched_getaffinity(0))
Workers = Annotated[int, typer.Option(min=1, help="Processes; the result doesn't depend on it.")]

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


def _engine(
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Limit for all processes together, such as 4GB; default: half of the machine's. With --scheduler: "
            "for each of its workers; default: their own.",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="tcp://HOST:8786",
            help="Dask scheduler whose workers do the work; they must see the same files.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """The arguments that preparations hand on to `prepare_table`, and the command for its card."""
    return {
        "memory": memory,
        "workers": workers,
        "scheduler": scheduler,
        "overwrite": overwrite,
        "command": _command(),
    }


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command have the options of `_engine`, whose result it gets as its `**engine`."""
    added = signature(_engine).parameters

    @wraps(command)
    def with_options(**given: Any) -> None:
        engine = _engine(**{name: given.pop(name) for name in added})
        command(**given, **engine)

    own = [each for each in signature(command).parameters.values() if each.kind != each.VAR_KEYWORD]
    with_options.__signature__ = Signature([*own, *added.values()])  # type: ignore[attr-defined]
    return with_options


@app.command()
@engine_options
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
    **engine: Any,
) -> None:
    """Amazon reviews of any category: a positive and a random negative row for each item of each user.

    RAW has reviews_<category>_5.json and meta_<category>.json (or .json.gz), or
    <category>.txt and <category>_item2attributes.json.
    """
    from cetnet.trainer.prepare.sources.amazon import prepare_amazon

    prepare_amazon(raw, category, out, split, max_length, keep, attributes, seed, **engine)
    _prepared(out)


Split = Annotated[
    Literal["published", "time"],
    typer.Option(
        help="published: the protocol's own, at random. time: 80/10/10 in order of time, from the challenge's file "
        "only; nothing later is known to train, or to what is tuned on validation."
    ),
]


@app.command("amazon_electronics")
@engine_options
def amazon_electronics(
    raw: Raw,
    out: Out,
    split: SequenceSplit = "clean",
    keep: Keep = "oldest",
    seed: Seed = 1,
    **engine: Any,
) -> None:
    """Amazon Electronics with published settings: a positive and a random negative row for each review.

    RAW has reviews_Electronics_5.json and meta_Electronics.json (or .json.gz), or
    train.csv and test.csv of AmazonElectronics_x1.
    """
    if (raw / "train.csv").exists():
        from cetnet.trainer.prepare.sources.repacked import prepare_amazon_electronics_x1

        prepare_amazon_electronics_x1(raw, out, split, keep, **engine)
    else:
        from cetnet.trainer.prepare.sources.amazon import prepare_amazon

        prepare_amazon(raw, "Electronics", out, split, 100, keep, seed=seed, **engine)
    _prepared(out)


@app.command()
@engine_options
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
    **engine: Any,
) -> None:
    """Avazu: clicks on mobile ads, 22 categorical fields (24 in x4)."""
    from cetnet.trainer.prepare.sources.avazu import prepare_avazu

    prepare_avazu(raw, out, protocol, split, **engine)
    _prepared(out)


@app.command()
@engine_options
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
    **engine: Any,
) -> None:
    """Criteo: clicks on display ads, 13 counts (in buckets, but for x1) and 26 categorical fields."""
    from cetnet.trainer.prepare.sources.criteo import prepare_criteo

    prepare_criteo(raw, out, protocol, split, **engine)
    _prepared(out)


@app.command("criteo_1tb")
@engine_options
def criteo_1tb(
    raw: Annotated[Path, typer.Option(help="Directory with day_0.gz ... day_23.gz, packed or not.")],
    out: Out,
    **engine: Any,
) -> None:
    """Criteo's terabyte: days 0 to 22 train, the halves of day 23 validation and test; ids modulo table sizes."""
    from cetnet.trainer.prepare.sources.criteo import prepare_criteo_1tb

    prepare_criteo_1tb(raw, out, **engine)
    _prepared(out)


@app.command()
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
    from cetnet.trainer.prepare.sources.ebnerd import prepare_ebnerd

    prepare_ebnerd(raw, out, split, history_length, dense, overwrite, seed, _command())
    _prepared(out)


@app.command()
def frappe(raw: Raw, out: Out, overwrite: Overwrite = False) -> None:
    """Frappe_x1: app usage in 10 categorical fields, from the libfm or the CSV files."""
    if (raw / "train.csv").exists():
        from cetnet.trainer.prepare.sources.repacked import prepare_frappe_x1

        prepare_frappe_x1(raw, out, overwrite=overwrite, command=_command())
    else:
        from cetnet.trainer.prepare.sources.frappe import prepare_frappe

        prepare_frappe(raw, out, overwrite, _command())
    _prepared(out)


@app.command()
@engine_options
def kuaivideo(
    raw: Raw,
    out: Out,
    split: SequenceSplit = "clean",
    keep: Keep = "oldest",
    **engine: Any,
) -> None:
    """KuaiVideo: clicks on short videos with two histories and vectors of the pictures.

    RAW has dataset.pkl and visual64_select.npy of ALPINE, or train.csv, test.csv
    and item_visual_emb_dim64.h5 of KuaiVideo_x1.
    """
    if (raw / "train.csv").exists():
        from cetnet.trainer.prepare.sources.repacked import prepare_kuaivideo_x1

        if keep == "recent":
            raise UserError("--keep recent: KuaiVideo_x1 has the oldest 100 items only; use ALPINE's files")
        prepare_kuaivideo_x1(raw, out, split, **engine)
    else:
        from cetnet.trainer.prepare.sources.kuaivideo import prepare_kuaivideo

        prepare_kuaivideo(raw, out, split, keep, **engine)
    _prepared(out)


@app.command()
@engine_options
def movielens(
    raw: Raw,
    out: Out,
    **engine: Any,
) -> None:
    """MovielensLatest_x1: tags of films in 3 categorical fields; train.csv, valid.csv and test.csv."""
    from cetnet.trainer.prepare.sources.repacked import prepare_movielens

    prepare_movielens(raw, out, **engine)
    _prepared(out)


@app.command()
def synthetic(
    out: Out,
    rows: Rows = 300_000,
    seed: Seed = 1,
    workers: Workers = CORES,
    overwrite: Overwrite = False,
) -> None:
    """A click log drawn from a known model, so that the best possible NE is known."""
    from cetnet.trainer.prepare.sources.synthetic import prepare_synthetic

    prepare_synthetic(out, rows, seed, workers=workers, overwrite=overwrite, command=_command())
    _prepared(out)


@app.command()
def synthetic_fields(
    out: Out,
    rows: Rows = 1_250_000,
    seed: Seed = 1,
    workers: Workers = CORES,
    overwrite: Overwrite = False,
) -> None:
    """A click log of a dozen long-tailed id fields, for studies of embedding sizes."""
    from cetnet.trainer.prepare.sources.synthetic_fields import prepare_synthetic_fields

    prepare_synthetic_fields(out, rows, seed, workers=workers, overwrite=overwrite, command=_command())
    _prepared(out)


@app.command()
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
    from cetnet.trainer.prepare.sources.random import prepare_random

    prepare_random(schema, rows, out, max_table_rows, overwrite, seed, _command())
    _prepared(out)


@app.command("taobao_ad")
@engine_options
def taobao_ad(
    raw: Raw,
    out: Out,
    split: SequenceSplit = "clean",
    **engine: Any,
) -> None:
    """TaobaoAd: ads with profiles and the user's last 50 behaviours.

    RAW has raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv, or
    train.csv and test.csv of TaobaoAd_x1.
    """
    if (raw / "train.csv").exists():
        from cetnet.trainer.prepare.sources.repacked import prepare_taobao_ad_x1

        prepare_taobao_ad_x1(raw, out, split, **engine)
    else:
        from cetnet.trainer.prepare.sources.taobao import prepare_taobao_ad

        prepare_taobao_ad(raw, out, split, **engine)
    _prepared(out)


RawSchema = Annotated[
    Path | None, typer.Option("--schema", help="YAML that names columns and kinds; see the README.")
]
RowSplit = Annotated[
    str | None,
    typer.Option(
        help="random:0.8,0.1,0.1 (the default) or time:0.8,0.1,0.1; train, validation or test: all rows. With --like "
        "the default is test, with --grow train. Not used where RAW has train, validation and test files."
    ),
]
Like = Annotated[
    Path | None,
    typer.Option(
        metavar="DATASET|RUN",
        help="Instead of --schema: read new rows as those of a dataset, or of the one that a run was trained on. A "
        "value has the id that it has there, one that isn't there id 0; rows to be scored need no label.",
    ),
]
Grow = Annotated[
    bool,
    typer.Option(
        "--grow", help="With --like: new values of train get ids behind the old ones, which stay as they are."
    ),
]


def _add_tabular(format: Literal["csv", "parquet"], description: str) -> None:
    @app.command(format, help=description)
    @engine_options
    def prepare(
        raw: Raw,
        out: Out,
        schema: RawSchema = None,
        like: Like = None,
        grow: Grow = False,
        split: RowSplit = None,
        seed: Seed = 1,
        **engine: Any,
    ) -> None:
        from cetnet.trainer.prepare.engine.tabular import prepare_tabular

        prepare_tabular(format, raw, out, schema, split, seed=seed, like=like, grow=grow, **engine)
        _prepared(out)


_add_tabular("csv", "Your own CSV files.")
_add_tabular("parquet", "Your own Parquet files.")


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


def _prepared(out: Path) -> None:
    typer.echo(f"{out}: ready; the data card is {out / 'README.md'}")
