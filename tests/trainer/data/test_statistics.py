"""What Parquet footers tell of a split, against its values; and what is said of it before a run starts."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.statistics import check_values, is_null, only_value
from cetnet.trainer.errors import UserError
from cetnet.trainer.yaml_files import save_yaml
from tests.data import make_schema, make_table, write_split
from tests.trainer.data.test_quarantine import SCHEMA, damaged

KINDS = [pa.int8(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()]


def write(folder: Path, table: pa.Table, *, weight: bool = True, **options: Any) -> None:
    """One file of row groups of 20 rows."""
    (folder / "train").mkdir(parents=True)
    save_yaml(folder / "schema.yaml", make_schema(weight))
    pq.write_table(table, folder / "train/part-00000.parquet", row_group_size=20, **options)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0, 1, None]), min_size=1, max_size=60)
    | st.lists(st.sampled_from([1, None]), min_size=1, max_size=60),
    kind=st.sampled_from(KINDS),
    told=st.booleans(),
)
def test_only_value_and_is_null(values: list[int | None], kind: pa.DataType, told: bool) -> None:
    table = make_table(make_schema(), len(values))
    place = table.column_names.index("click")
    column = pa.array([None if value is None else bool(value) for value in values]).cast(kind)
    with TemporaryDirectory() as folder:
        write(Path(folder), table.set_column(place, "click", column), weight=False, write_statistics=told)
        dataset = Dataset(Path(folder), "train")
        different = set(values) - {None}
        assert only_value(dataset, "click") == (min(different) if told and len(different) == 1 else None)
        assert is_null(dataset, "click") == (told and not different)


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        (3, "user", -1),
        (40, "item", 40),
        (41, "item", None),
        (46, "queries", [1, 30]),
        (57, "history", [-2]),
        (60, "age", math.inf),
        (61, "price", None),
        (77, "click", 2),
        (78, "weight", -1.0),
        (79, "weight", None),
    ],
)
def test_a_bad_row_is_named_before_it_is_met(tmp_path: Path, row: int, column: str, value: Any) -> None:
    table = damaged(make_table(SCHEMA, 90), [(row, column, value)])
    write(tmp_path / "told", table)
    with pytest.raises(UserError, match=rf"row group {row // 20}, row {row} .*column '{column}'"):
        check_values(Dataset(tmp_path / "told", "train"))
    check_values(Dataset(tmp_path / "told", "train", "quarantine"), limit=1)
    write(tmp_path / "untold", table, write_statistics=False)
    check_values(Dataset(tmp_path / "untold", "train"))


def test_more_nulls_than_may_be_quarantined(tmp_path: Path) -> None:
    write(tmp_path, damaged(make_table(SCHEMA, 90), [(row, "user", None) for row in (3, 30, 31)]))
    dataset = Dataset(tmp_path, "train", "quarantine")
    check_values(dataset, limit=3)
    check_values(dataset)
    with pytest.raises(UserError, match=r"'user' has 3 nulls, more than data\.bad_rows_limit=2"):
        check_values(dataset, limit=2)


def test_good_rows_of_every_kind_are_let_pass(tmp_path: Path) -> None:
    table = make_table(SCHEMA, 90)
    extreme = damaged(
        table,
        [(0, "user", 49), (1, "user", 0), (2, "history", []), (3, "price", 3.4e38), (4, "weight", 0.0)],
    )
    extreme = extreme.set_column(extreme.column_names.index("session"), "session", pa.nulls(90, pa.int64()))
    write(tmp_path, extreme)
    check_values(Dataset(tmp_path, "train"))


def test_a_hashed_column_may_hold_anything(tmp_path: Path) -> None:
    table = damaged(make_table(SCHEMA, 60), [(25, "item", None), (26, "item", -5)])
    save_yaml(tmp_path / "schema.yaml", SCHEMA.model_copy(update={"hashed": ("item",)}))
    write_split(tmp_path / "train", table, [[20, 40]])
    check_values(Dataset(tmp_path, "train"))


def test_the_same_of_several_files(tmp_path: Path) -> None:
    table = make_table(SCHEMA, 60)
    zeros = table.set_column(table.column_names.index("weight"), "weight", pa.array(np.zeros(60, np.float32)))
    save_yaml(tmp_path / "schema.yaml", SCHEMA)
    write_split(tmp_path / "train", zeros, [[20], [], [20, 20]])
    assert only_value(Dataset(tmp_path, "train"), "weight") == 0
    assert math.copysign(1, only_value(Dataset(tmp_path, "train"), "weight") or 0) == 1
