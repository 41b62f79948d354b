"""The benchmark community's re-packed CSV files of MovieLens, Frappe and the three sets with histories.

Each is `train.csv`, `valid.csv` (those with histories have none) and `test.csv` in a directory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from cetnet.models.schema import Schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card, Published
from cetnet.trainer.prepare.engine.folds import LastOfUserSplit, TailSplit
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.splits import Split
from cetnet.trainer.prepare.engine.tabular import prepare_table
from cetnet.trainer.prepare.engine.typed import Transform
from cetnet.trainer.prepare.sources import amazon, kuaivideo, published, taobao
from cetnet.trainer.prepare.sources.raw_files import check_header, given_files
from cetnet.trainer.prepare.sources.taobao import AD, PROFILE

SequenceSplit = Literal["clean", "bars"]
FORMAT = {"separator": "^", "quote": None}  # of the sets with histories
FRAPPE = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
AMAZON_COLUMNS = ("label", "user_id", "item_id", "cate_id", "item_history", "cate_history")
TAOBAO_COLUMNS = (
    "clk",
    "btag_his",
    "cate_his",
    "brand_his",
    "userid",
    *PROFILE,
    "adgroup_id",
    *AD,
    "price",
    "pid",
    "btag",
)
KUAI_COLUMNS = (
    "timestamp", "user_id", "item_id", "is_click", "is_like", "is_follow", "pos_items", "neg_items",
)  # fmt: skip


def _categorical(*names: str, min_count: int | None = None) -> list[RawFeature]:
    return [RawFeature(name=name, kind="categorical", min_count=min_count) for name in names]


def _prepare(
    raw: Path,
    out: Path,
    name: str,
    columns: Sequence[str],
    spec: RawSchema,
    counts: Published,
    split: Split | None,
    transform: Transform | None = None,
    notes: Sequence[str] = (),
    *,
    command: str,
    **engine: Any,
) -> Schema:
    """Check the files of a directory, and prepare them: as they are split, or divided by `split`."""
    has_validation = "valid.csv" in counts.md5
    files = given_files(raw, name, has_validation)
    for (path,) in files.values():
        check_header(path, columns, name)
    if not has_validation and split is None:
        notes = (
            *notes,
            "Validation is the test rows again, as published: what is tuned on it is tuned on test.",
        )
    return prepare_table(
        spec,
        files if split is None else {"all": [*files["train"], *files["test"]]},
        "csv",
        out,
        Card(
            title=name,
            source=f"{name} of BARS; not to be redistributed",
            command=command,
            notes=tuple(notes),
            published=counts if split is None else counts.of_test(),
        ),
        split=split,
        transform=transform,
        md5=counts.md5_of(raw),
        **engine,
    )


def prepare_movielens(raw: Path, out: Path, **engine: Any) -> Schema:
    """Prepare MovielensLatest_x1: `train.csv`, `valid.csv`, `test.csv` in a directory.

    `label`, and categorical `user_id`, `item_id`, `tag_id`. `engine`: command, memory, workers, scheduler and
    overwrite of `prepare_table`, whose errors are raised too, here and below. Raises UserError for other files.
    """
    columns = ("user_id", "item_id", "tag_id")
    spec = RawSchema(label="label", features=tuple(_categorical(*columns)), quote=None)
    return _prepare(
        raw, out, "MovielensLatest_x1", ("label", *columns), spec, published.MOVIELENS_X1, None, **engine
    )


def prepare_frappe_x1(raw: Path, out: Path, **engine: Any) -> Schema:
    """Prepare Frappe_x1 in CSV: as `frappe.prepare_frappe`, whose libfm files hold the same rows."""
    spec = RawSchema(label="label", group="user_id", features=tuple(_categorical(*FRAPPE)), quote=None)
    return _prepare(
        raw, out, "Frappe_x1", ("label", *FRAPPE), spec, published.FRAPPE_X1, None, with_user_id, **engine
    )


def with_user_id(frame: pl.DataFrame) -> pl.DataFrame:
    """`user_id` beside the feature `user`."""
    return frame.with_columns(pl.col("user").alias("user_id"))


def prepare_amazon_electronics_x1(
    raw: Path,
    out: Path,
    split: SequenceSplit = "clean",
    keep: Literal["recent", "oldest"] = "oldest",
    **engine: Any,
) -> Schema:
    """Prepare AmazonElectronics_x1: `train.csv` and `test.csv` in a directory.

    `label`; `user_id` (int64, the group); categorical `item_id`, `cate_id`; sequences `item_history`, `cate_history`
    in their tables, of which the 100 `keep` events are kept (the oldest in published results). `split="bars"`:
    validation is test. `"clean"`: validation is the last interaction of each user in train.csv.
    """
    spec = amazon.raw_schema(100, keep, attributes=False, timestamp=False).model_copy(update=FORMAT)
    rule = LastOfUserSplit(raw / "train.csv", "item_history", "^") if split == "clean" else None
    name = "AmazonElectronics_x1"
    return _prepare(raw, out, name, AMAZON_COLUMNS, spec, published.AMAZON_ELECTRONICS_X1, rule, **engine)


def prepare_taobao_ad_x1(raw: Path, out: Path, split: SequenceSplit = "clean", **engine: Any) -> Schema:
    """Prepare TaobaoAd_x1: `train.csv` and `test.csv` in a directory.

    `clk`; `group_id` (int64, the user); 16 categorical features, min_count 10; dense `price`; sequences `cate_his`,
    `brand_his`, `btag_his`, at most 50 events. `split="bars"`: validation is test. `"clean"`: validation is the last
    tenth of train.csv, whose rows its publisher had sorted (there is no column of time).
    """
    spec = taobao.raw_schema().model_copy(update=FORMAT)
    rule = TailSplit(0.1) if split == "clean" else None
    note = (
        "Where `brand_his` is shorter than the others (unknown brands are left out of it), id 0 comes first."
    )
    return _prepare(
        raw,
        out,
        "TaobaoAd_x1",
        TAOBAO_COLUMNS,
        spec,
        published.TAOBAO_AD_X1,
        rule,
        taobao_ad,
        (note,),
        **engine,
    )


def taobao_ad(frame: pl.DataFrame) -> pl.DataFrame:
    """`group_id`, and the histories as lists of one length: shorter ones begin with nulls, as padding does."""
    names = ["cate_his", "brand_his", "btag_his"]
    lists = frame.select(pl.col(names).fill_null("").str.split("^"))
    lists = lists.select(pl.all().list.eval(pl.element().filter(pl.element() != "")))
    longest = lists.select(pl.max_horizontal(pl.all().list.len())).to_series()
    nulls = [
        pl.lit(None, pl.String).repeat_by((longest - lists[name].list.len()).alias(name)) for name in names
    ]
    padded = lists.with_columns(
        pl.concat_list(null, pl.col(name)).alias(name) for name, null in zip(names, nulls, strict=True)
    )
    return frame.with_columns(pl.col("userid").alias("group_id"), *padded)


def prepare_kuaivideo_x1(raw: Path, out: Path, split: SequenceSplit = "clean", **engine: Any) -> Schema:
    """Prepare KuaiVideo_x1: `train.csv`, `test.csv` and the vectors in a directory.

    The columns of `kuaivideo.prepare_kuaivideo`. The files hold the oldest 100 events of each history. The vectors
    are item_visual_emb_dim64.h5, which needs h5py, or visual64_select.npy of ALPINE. `split="bars"`: validation is
    test. `"clean"`: validation is the last tenth of train.csv by time.
    """
    names = ("item_visual_emb_dim64.h5", "visual64_select.npy")
    vectors = next((raw / name for name in names if (raw / name).is_file()), None)
    if vectors is None:
        raise UserError(
            f"{raw} has no {names[0]}, nor {names[1]}: the vectors of the videos belong to the files"
        )
    spec = kuaivideo.raw_schema(vectors, "oldest").model_copy(update=FORMAT)
    rule = TailSplit(0.1, raw / "train.csv", "timestamp") if split == "clean" else None
    return _prepare(
        raw,
        out,
        "KuaiVideo_x1",
        KUAI_COLUMNS,
        spec,
        published.KUAIVIDEO_X1,
        rule,
        kuaivideo.add_copies,
        **engine,
    )
