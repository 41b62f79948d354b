"""Parquet files as others write them: of types that differ, without a value, with odd columns and odd times."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cetnet.models.schema import Feature, FeatureKind, Schema
from cetnet.trainer.data.arrow_types import Use
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.yaml_files import save_yaml
from tests.trainer.data.arrow_columns import BITS
from tests.trainer.data.test_arrow_types import GOOD, prepare, read, renamed, usable


def test_types_that_differ_among_files(tmp_path: Path) -> None:
    without_null = [c for c in GOOD if not c.many and None not in c.values]
    dense = renamed("dense", usable(without_null, Use("number")))
    ids = renamed("id", usable(without_null, Use("id")))
    schema = Schema(
        label="y",
        group="g",
        tables={c.name: 2 for c in ids},
        features=(
            *(Feature(name=c.name, kind="dense") for c in dense),
            *(Feature(name=c.name, kind="categorical") for c in ids),
        ),
    )
    save_yaml(tmp_path / "schema.yaml", schema)
    kinds = [pa.int8(), pa.int64(), pa.uint32(), pa.dictionary(pa.int8(), pa.int64())]
    for number in range(4):
        columns = {
            "g": pa.array(BITS, kinds[number].value_type).dictionary_encode()
            if number == 3
            else pa.array(BITS, kinds[number])
        }
        for of in (dense, ids):
            for at, column in enumerate(of):
                columns[column.name] = of[(at + 5 * number) % len(of)].array
        names = list(columns) if number % 2 else list(columns)[::-1]
        (tmp_path / "train").mkdir(exist_ok=True)
        pq.write_table(
            pa.table({"y": pa.array(BITS, kinds[number % 2]), **{n: columns[n] for n in names}}),
            tmp_path / f"train/{number}.parquet",
        )
    dataset = Dataset(tmp_path, "train")
    rows = read(dataset)
    assert rows.numbers.tolist() == [BITS * 4, [1.0] * 24, *[BITS * 4] * len(dense)]
    assert rows.ids.tolist() == [BITS * 4] * len(ids)
    assert dataset.column("g").tolist() == BITS * 4
    table = pq.read_table(tmp_path / "train/1.parquet")
    table = table.set_column(table.column_names.index("g"), "g", pa.array([2**63 + 5] * 6, pa.uint64()))
    pq.write_table(table, tmp_path / "train/1.parquet")
    with pytest.raises(
        UserError, match=r"1.parquet: column 'g' is uint64, but int8 in 0.parquet; write all files alike"
    ):
        Dataset(tmp_path, "train")


def test_an_id_beyond_int64_is_named_in_any_file(tmp_path: Path) -> None:
    schema = Schema(label="y", tables={"x": 9}, features=(Feature(name="x", kind="categorical"),))
    save_yaml(tmp_path / "schema.yaml", schema)
    (tmp_path / "train").mkdir()
    for number, (value, kind) in enumerate([(8, pa.int8()), (2**63 + 5, pa.uint64())]):
        pq.write_table(
            pa.table({"y": [1], "x": pa.array([value], kind)}), tmp_path / f"train/{number}.parquet"
        )
    with pytest.raises(
        UserError, match=r"1.parquet, row group 0, row 0 .*'x': id 9223372036854775813 is outside table"
    ):
        read(Dataset(tmp_path, "train"))
    rows = read(Dataset(tmp_path, "train", "quarantine"))
    assert (rows.row.tolist(), rows.ids[0, 0]) == ([0, -1], 8)


def test_columns_of_type_null_are_null(tmp_path: Path) -> None:
    """The message is that of a null."""
    kinds: dict[str, FeatureKind] = {"x": "categorical", "l": "multi_valued", "d": "dense"}
    features = tuple(Feature(name=name, kind=kind) for name, kind in kinds.items())
    schema = Schema(label="y", tables={"x": 9, "l": 9}, features=features)
    save_yaml(tmp_path / "schema.yaml", schema)
    good: dict[str, Any] = {"y": [0, 1], "x": [1, 2], "l": [[1], []], "d": [0.5, 1.5]}
    types = {"y": pa.int8(), "x": pa.int64(), "l": pa.list_(pa.int64()), "d": pa.float32()}
    (tmp_path / "train").mkdir()
    for name, kind in types.items():
        told = []
        for column in (pa.nulls(2), pa.nulls(2, kind)):
            pq.write_table(pa.table(good | {name: column}), tmp_path / "train/0.parquet")
            with pytest.raises(UserError, match=rf"row 0 .*column '{name}': null") as error:
                read(Dataset(tmp_path, "train"))
            told.append(str(error.value))
        assert told[0] == told[1]


def test_times_of_spark_beyond_nanoseconds(tmp_path: Path) -> None:
    times = [
        datetime(1969, 12, 31, 23, 59, 59, 1),
        datetime(2024, 1, 1),
        datetime(9999, 12, 31),
        *[datetime(1, 1, 1)] * 3,
    ]
    wanted = [(time - datetime(1970, 1, 1)) // timedelta(seconds=1) for time in times]
    table = pa.table({"y": BITS, "x": BITS, "t": pa.array(times, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "0.parquet", use_deprecated_int96_timestamps=True)
    spec = RawSchema(label="y", timestamp="t", features=(RawFeature(name="x", kind="categorical"),))
    assert prepare(spec, tmp_path / "0.parquet", tmp_path / "out")["t"].to_list() == wanted


def test_columns_that_are_there_twice_or_have_a_dot(tmp_path: Path) -> None:
    """Only those that the schema names count; `x.y` is a column of its own, beside the `y` in `x`."""
    spec = RawSchema(label="y", features=(RawFeature(name="x", kind="categorical"),))
    save_yaml(
        tmp_path / "schema.yaml",
        Schema(label="y", tables={"x": 2}, hashed=("x",), features=spec.draft.features),
    )
    (tmp_path / "train").mkdir()
    arrays = [
        pa.array(BITS),
        pa.array(BITS[::-1]),
        pa.array([{"y": bit} for bit in BITS]),
        *[pa.array(BITS)] * 2,
    ]
    pq.write_table(pa.table(arrays, ["y", "x", "s", "x.y", "s.y"]), tmp_path / "train/0.parquet")
    assert read(Dataset(tmp_path, "train")).numbers[0].tolist() == BITS
    assert len(prepare(spec, tmp_path / "train/0.parquet", tmp_path / "out")) == 6
    pq.write_table(pa.table(arrays, ["y", "x", "s", "s", "s.y"]), tmp_path / "train/0.parquet")
    assert read(Dataset(tmp_path, "train")).numbers[0].tolist() == BITS
    assert len(prepare(spec, tmp_path / "train/0.parquet", tmp_path / "again")) == 6
    pq.write_table(pa.table(arrays, ["y", "x", "s", "x", "s.y"]), tmp_path / "train/0.parquet")
    for make in (
        lambda: Dataset(tmp_path, "train"),
        lambda: prepare(spec, tmp_path / "train/0.parquet", tmp_path / "o"),
    ):
        with pytest.raises(UserError, match=r"0.parquet: 2 columns 'x', which .* names; columns: "):
            make()
