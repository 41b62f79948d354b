"""What is measured: points on axes. Imports neither torch nor torchrec."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.yaml_files import read_yaml

_PACKAGE = Path(__file__).parents[2]
_TABLES, _DENSE = 26, 13


@dataclass(frozen=True)
class Point:
    """A model whose steps are timed on random rows.

    Attributes:
        line: what the point belongs to: a line of a plot, or a bar.
        x: where on its axis.
        schema: features and tables; ids are uniform over their tables.
        model: the section `model` of an experiment file.
        batch_size: rows a step, over all ranks.
        precision: `training.precision`.
        ranks: processes.
        length_sigma: of the lognormal that lengths of lists are drawn from; 0: all have the feature's mean.
    """

    line: str
    x: float
    schema: Schema
    model: dict[str, Any]
    batch_size: int
    precision: str = "fp32"
    ranks: int = 1
    length_sigma: float = 0.0

    def config(self, device: str) -> RunConfig:
        """The training run."""
        return RunConfig.model_validate(
            {
                "data": {"path": ".", "batch_size": self.batch_size, "lanes": self.ranks},
                "model": self.model,
                "training": {"precision": self.precision, "device": device},
            }
        )

    def table_bytes(self) -> int:
        """Bytes of the tables with row-wise Adagrad's state."""
        rows = sum(self.schema.tables.values())
        components = self.config("cpu").model.components.values()
        return sum(4 * rows * (component.embedding_dim + 1) for component in components)


@dataclass
class Timing:
    """What was measured of a point.

    Attributes:
        build_seconds: to build, plan, shard and fill the tables.
        steps: in each round.
        seconds: a step, by round.
        peak_bytes: most memory that was resident, summed over the ranks; on a GPU allocated there.
    """

    build_seconds: float
    steps: int = 0
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


@dataclass(frozen=True)
class Ratio:
    """Step time of a point against the sum of others', by their places in the axis; `at_most` is the target."""

    what: str
    point: int
    against: tuple[int, ...]
    at_most: float | None = None


@dataclass(frozen=True)
class Axis:
    """Points that differ in one thing.

    Attributes:
        label: of that thing, x of the plot; bars have none.
        about: what stays the same.
        guide: how the cost would grow in the ideal, drawn from the first point.
        points: by line; those of a line take turns.
        ratios: of points, in the order of `points`.
        bars: compare the points instead of plotting them along x; all take turns, in one process.
    """

    label: str
    about: str
    points: Sequence[Point]
    guide: Literal["flat", "proportional"] = "flat"
    ratios: Sequence[Ratio] = ()
    bars: bool = False


def _id_schema(rows: int) -> Schema:
    """26 tables, `rows` rows in all, and 13 dense features, as Criteo's."""
    names = [f"c{i}" for i in range(_TABLES)]
    return Schema(
        label="label",
        tables=dict.fromkeys(names, max(1, rows // _TABLES)),
        features=(
            *(Feature(name=name, kind="categorical") for name in names),
            *(Feature(name=f"d{i}", kind="dense") for i in range(_DENSE)),
        ),
    )


def _history_schema(mean_length: float, max_length: int) -> Schema:
    """A user, an item with its category, a history of both, two dense features."""
    history = {"kind": "sequence", "max_length": max_length, "mean_length": mean_length}
    return Schema(
        label="label",
        tables={"user": 100_000, "item": 100_000, "category": 1000},
        features=(
            *(Feature(name=name, kind="categorical") for name in ("user", "item", "category")),
            Feature.model_validate({"name": "items", "table": "item", **history}),
            Feature.model_validate({"name": "categories", "table": "category", **history}),
            *(Feature(name=f"d{i}", kind="dense") for i in range(2)),
        ),
    )


def _single(kind: str, dim: int, **settings: Any) -> dict[str, Any]:
    return {"components": {kind: {"kind": kind, "embedding_dim": dim, **settings}}}


def _dcnv2(dim: int = 16, **settings: Any) -> dict[str, Any]:
    return _single("dcnv2", dim, **{"hidden_units": [400, 400, 400], **settings})


def rows_axis() -> Axis:
    """Total rows of all tables."""
    sizes = [10**4, 10**5, 10**6, 10**7, 10**8]
    precisions = ("fp32", "bf16")
    return Axis(
        label="rows of all tables",
        about="DCNv2 (3 crosses, 3 x 400), 26 equal tables of dim 16, 13 dense features, 4096 rows a step. Ids are "
        "uniform over all rows, the worst case for caches: of real data most lookups hit few rows.",
        points=[
            Point(precision, size, _id_schema(size), _dcnv2(), 4096, precision)
            for precision in precisions
            for size in sizes
        ],
        ratios=[
            Ratio(f"10^8 rows / 10^5 rows, {precision}", i * len(sizes) + 4, (i * len(sizes) + 1,), 1.5)
            for i, precision in enumerate(precisions)
        ],
    )


def dim_axis() -> Axis:
    """Embedding dimension."""
    models = {
        "DNN": lambda dim: _single("dnn", dim, hidden_units=[400, 400, 400]),
        "DHEN": lambda dim: _single("dhen", dim),
    }
    return Axis(
        label="embedding dimension",
        about="26 tables of 10^6 rows in all, 13 dense features, 1024 rows a step, fp32; DNN with 3 x 400 units, "
        "DHEN with its default layers, whose crosses cost dim^2.",
        points=[
            Point(name, dim, _id_schema(10**6), model(dim), 1024)
            for name, model in models.items()
            for dim in (8, 16, 32, 64, 128, 256)
        ],
        guide="proportional",
    )


def length_axis() -> Axis:
    """Length of histories."""
    models = {"InterFormer": _single("interformer", 16), "DIN": _single("din", 16)}
    return Axis(
        label="events in each history",
        about="Two aligned histories, all of this length, dim 16, 128 rows a step, fp32; default layers.",
        points=[
            Point(name, length, _history_schema(length, length), model, 128)
            for name, model in models.items()
            for length in (10, 30, 100, 300, 1000)
        ],
        guide="proportional",
    )


def batch_axis() -> Axis:
    """Rows a step."""
    return Axis(
        label="rows a step",
        about="DCNv2 (3 crosses, 3 x 400), 26 tables of 10^6 rows in all, dim 16, 13 dense features.",
        points=[
            Point(precision, size, _id_schema(10**6), _dcnv2(), size, precision)
            for precision in ("fp32", "bf16")
            for size in (256, 1024, 4096, 16384, 65536)
        ],
        guide="proportional",
    )


def components_axis() -> Axis:
    """Copies of a small component."""
    counts = (1, 2, 3, 4, 6, 8)
    return Axis(
        label="components",
        about="Copies of a small DCNv2 (2 crosses, 2 x 128), each with its own 26 tables of 10^6 rows in all, dim 8, "
        "fused by confidence and taught by symmetric KL; 13 dense features, 2048 rows a step, fp32.",
        points=[
            Point(
                "copies of DCNv2",
                count,
                _id_schema(10**6),
                _dcnv2(8, hidden_units=[128, 128], num_cross_layers=2, copies=count),
                2048,
            )
            for count in counts
        ],
        guide="proportional",
        ratios=[
            Ratio(f"{count} components / {count} x one", i, (0,) * count)
            for i, count in enumerate(counts)
            if i
        ],
    )


def ranks_axis() -> Axis:
    """Processes on the cores there are."""
    return Axis(
        label="ranks",
        about="gloo processes that share this machine's cores; 4096 rows a step over all of them. DCNv2 as above, "
        "bf16; CETNet of configs/demo.yaml, fp32.",
        points=[
            *(Point("DCNv2", ranks, _id_schema(10**6), _dcnv2(), 4096, "bf16", ranks) for ranks in (1, 2, 4)),
            *(Point("CETNet", ranks, _demo_schema(), _demo(), 4096, ranks=ranks) for ranks in (1, 2, 4)),
        ],
        ratios=[Ratio("DCNv2, 2 ranks / 1 rank", 1, (0,)), Ratio("CETNet, 2 ranks / 1 rank", 4, (3,))],
    )


def ensemble_axis() -> Axis:
    """CETNet against its components alone."""
    both = _demo()["components"]
    wide = {"interformer": {**both["interformer"], "embedding_dim": 32}}
    models = {
        "CETNet": _demo(),
        "InterFormer": {"components": {"interformer": both["interformer"]}},
        "DHEN": {"components": {"dhen": both["dhen"]}},
        "InterFormer, dim 32": {"components": wide},
    }
    point = Point("", 0, _demo_schema(), {}, 512)
    return Axis(
        label="",
        about="CETNet of configs/demo.yaml (InterFormer and DHEN, dim 16 each), its components alone, and an "
        "InterFormer with as many numbers per embedding as both have together; 512 rows a step, fp32.",
        points=[replace(point, line=name, model=model) for name, model in models.items()],
        ratios=[
            Ratio("CETNet / (InterFormer + DHEN)", 0, (1, 2), 0.9),
            Ratio("CETNet / InterFormer, dim 32", 0, (3,)),
        ],
        bars=True,
    )


def padding_axis() -> Axis:
    """Histories of one length, and of many."""
    return Axis(
        label="",
        about="InterFormer, two aligned histories with 50 events on average, dim 16, 256 rows a step, fp32. The "
        "lengths of the second are lognormal (sigma 1, cut at 1000): it costs more for padding, though rows of like "
        "lengths are computed apart, and because attention costs length^2.",
        points=[
            Point("all of 50 events", 0, _history_schema(50, 1000), _single("interformer", 16), 256),
            Point(
                "mean 50, up to 1000",
                0,
                _history_schema(50, 1000),
                _single("interformer", 16),
                256,
                length_sigma=1,
            ),
        ],
        ratios=[Ratio("mean 50, up to 1000 / all of 50", 1, (0,))],
        bars=True,
    )


def _demo() -> dict[str, Any]:
    model: dict[str, Any] = read_yaml(_PACKAGE / "configs/demo.yaml")["model"]
    return model


def _demo_schema() -> Schema:
    return read_schema(_PACKAGE / "benchmarks/studies/schemas/demo.yaml")


AXES = {
    "rows": rows_axis,
    "dim": dim_axis,
    "length": length_axis,
    "batch": batch_axis,
    "components": components_axis,
    "ranks": ranks_axis,
    "ensemble": ensemble_axis,
    "padding": padding_axis,
}
