"""Metrics of the fused output by the values of a column: of the most frequent ones, and of the others together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cetnet.trainer.data.arrow_types import value_type
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.dataset_files import VOCABULARIES
from cetnet.trainer.errors import UserError
from cetnet.trainer.given import check_given, plain_values
from cetnet.trainer.metrics import binary_metrics

TOP, AT_MOST = 20, 25  # 24 hours are no reason to have others
MISSING = "(missing)"
_LAST_SECOND = 253_402_300_799  # of the year 9999


class Slice(NamedTuple):
    """Rows with a value, and their metrics.

    Attributes:
        value: in words.
        rows: how many.
        positive_rate: weighted mean of the labels.
        metrics: `ne` (against the slice's own base rate), `logloss`, `auc`, `calibration`; NaN where undefined.
    """

    value: str
    rows: int
    positive_rate: float
    metrics: dict[str, float]


def check_sliced(dataset: Dataset, names: Sequence[str]) -> None:
    """Raise UserError for a column that is missing in a file, or has no single values."""
    check_given(dataset, names, "--by")
    for name in names:
        for file, kind in dataset.given_types(name).items():
            kind = value_type(kind)
            if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
                raise UserError(
                    f"--by {name}: the column is {kind} in {file}; name one with a number or text a row"
                )


def slices_of(
    dataset: Dataset,
    name: str,
    scored: NDArray[np.bool_],
    label: NDArray[np.float64],
    weight: NDArray[np.float64],
    probability: NDArray[np.float64],
    run: Path,
) -> list[Slice]:
    """The slices by one column: TOP values by their rows, the others, and what the model's vocabulary has of it.

    Args:
        dataset: that was scored.
        name: of a column of its files; see `check_sliced`.
        scored: `[dataset.num_rows]`, which rows were; the next three are of those only.
        label: 0 or 1.
        weight: at least 0.
        probability: of the fused output.
        run: folder of the run, for the values behind ids.
    """

    def of(value: str, rows: NDArray) -> Slice:
        positive = float(np.sum(weight[rows] * label[rows]))
        total = float(np.sum(weight[rows]))
        metrics = binary_metrics(label[rows], probability[rows], weight[rows])
        return Slice(value, len(label[rows]), positive / total if total else float("nan"), metrics)

    codes, values, known = _coded(dataset, name, scored)
    counts = np.bincount(codes, minlength=len(values))
    table = dataset.vocabulary_of(name)
    if table and "0" in values:  # id 0, which has a slice of its own below
        counts[values.index("0")] = 0
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda code: (-counts[code], values[code]))
    top, rest = (order[:TOP], order[TOP:]) if len(order) > AT_MOST else (order, [])
    titles = {code: values[code] for code in top}
    if table:
        titles = _values_of_ids(titles, run / VOCABULARIES / f"{table}.parquet")
    found = [of(titles[code], codes == code) for code in top]
    if rest:
        others = np.zeros(len(values), bool)
        others[rest] = True
        found.append(of(f"others ({len(rest):,} values)", others[codes]))
    if known is not None and not known.all():
        found += [of("known to the model", known), of("unknown to the model, or missing", ~known)]
    return found


def _coded(
    dataset: Dataset, name: str, scored: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], list[str], NDArray[np.bool_] | None]:
    """Of the scored rows the number of each one's value, the values, and whether the model knows it, if it may."""
    numbers: dict[str, int] = {}
    parts, known = [np.empty(0, np.int64)], [np.empty(0, bool)]
    for group in dataset.row_groups:
        rows = scored[group.first_row :][: group.num_rows]
        times = dataset.seconds(group, name)
        column = dataset.given(group, [name])[name] if times is None else pa.chunked_array([_times(times)])
        texts = pa.chunked_array([_texts(chunk) for chunk in column.chunks], pa.large_string())
        encoded = pa.concat_arrays([*texts.chunks, pa.array([], pa.large_string())]).dictionary_encode()
        of_group = [numbers.setdefault(text, len(numbers)) for text in encoded.dictionary.to_pylist()]
        parts.append(np.array(of_group, np.int64)[encoded.indices.to_numpy()][rows])
        if (of_rows := dataset.known(group, name)) is not None:
            known.append(of_rows[rows])
    return np.concatenate(parts), list(numbers), np.concatenate(known) if len(known) > 1 else None


def _times(seconds: pa.Array) -> pa.Array:
    """Null where there is no such year."""
    seconds = seconds.cast(pa.int64())
    real = pc.less_equal(pc.abs(seconds), _LAST_SECOND)
    return pc.if_else(real, seconds, None).cast(pa.timestamp("s"))


def _texts(array: pa.Array) -> pa.Array:
    """Values as they are shown: numbers without needless zeros, times by their day (UTC); none is null."""
    array = plain_values(array)
    kind = array.type
    if pa.types.is_timestamp(kind):
        array = array.cast(pa.timestamp(kind.unit)).cast(pa.date32(), safe=False)
    elif pa.types.is_date(kind):
        array = array.cast(pa.date32())
    elif pa.types.is_floating(kind):
        array = array.cast(pa.float64())
        whole = pc.and_(pc.equal(array, pc.floor(array)), pc.less(pc.abs(array), 2.0**53)).fill_null(False)
        integers = pc.if_else(whole, array, 0.0).cast(pa.int64()).cast(pa.large_string())
        texts = pc.if_else(whole, integers, array.cast(pa.large_string()))
        return pc.if_else(pc.is_nan(array).fill_null(True), MISSING, texts)
    return array.cast(pa.large_string()).fill_null(MISSING)


def _values_of_ids(ids: Mapping[int, str], file: Path) -> dict[int, str]:
    """The values behind ids, by whatever they are keyed with; the ids themselves where there is no such file."""
    names = {}
    if file.exists():
        wanted = pa.array([int(one) for one in ids.values()], pa.int64())
        with file.open("rb") as opened, pq.ParquetFile(opened) as parquet:
            for batch in parquet.iter_batches(columns=["value", "id"]):
                for row in batch.filter(pc.is_in(batch["id"], wanted)).to_pylist():
                    names[str(row["id"])] = row["value"]
    return {key: names.get(one, f"id {one}") for key, one in ids.items()}


def note_on(slices: Sequence[Slice]) -> str | None:
    """Why numbers of slices are missing, if any are."""
    without = sum(np.isnan(each.metrics["ne"]) for each in slices)
    if not without:
        return None
    return f"-: undefined in {without} of {len(slices)} slices, whose rows have one label or no weight"
