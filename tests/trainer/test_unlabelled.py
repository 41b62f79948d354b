"""`cetnet predict` needs no label: the probabilities are those of rows that have one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.data import write_dataset

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> Path:
    """A working directory with `data`, of which a table is hashed, and `run`."""
    monkeypatch.chdir(tmp_path)
    schema = write_dataset(Path("data"), {"train": 60, "test": 60}, row_group_size=20, weight=True)
    hashed = schema.model_copy(update={"hashed": ("item",)}).model_dump(mode="json", exclude_none=True)
    Path("data/schema.yaml").write_text(yaml.safe_dump(hashed), encoding="utf-8")
    components = {"dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]}}
    settings = {
        "run_dir": "run",
        "data": {"path": "data", "batch_size": 16, "lanes": 4},
        "model": {"components": components},
        "training": {"device": "cpu", "max_steps": 2},
        "evaluation": {"splits": []},
    }
    Path("experiment.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert run("train", "experiment.yaml")[0] == 0
    return tmp_path


def change(number: int, change: Callable[[pa.Table], pa.Table]) -> None:
    file = Path(f"data/test/part-0000{number}.parquet")
    pq.write_table(change(pq.read_table(file)), file, row_group_size=20)


def without_label(table: pa.Table) -> pa.Table:
    return table.drop(["click", "weight", "session"])


def odd_label(table: pa.Table) -> pa.Table:
    label = pa.array([None, 7, *[1] * (len(table) - 2)], pa.int8())
    return table.set_column(table.column_names.index("click"), "click", label)


def predicted(run: Run) -> pa.Table:
    code, said = run("predict", "run", "data", "--out", "out.parquet")
    assert code == 0, said
    return pq.read_table("out.parquet")


@pytest.mark.usefixtures("folder")
def test_rows_without_a_label(run: Run) -> None:
    labelled = predicted(run)
    assert labelled.column_names == ["row", "label", "weight", "group", "fused"]

    change(1, odd_label)
    some = predicted(run)
    assert some["label"].to_pylist()[30:33] == [None, 7, 1]
    code, said = run("evaluate", "run", "data")
    assert code == 2
    assert "row 0" in said
    assert "column 'click'" in said

    change(0, without_label)  # one file of two
    some = predicted(run)
    assert some["label"].to_pylist()[28:33] == [None, None, None, 7, 1]
    assert some["label"].type == labelled["label"].type

    change(1, without_label)
    none = predicted(run)
    assert none.column_names == ["row", "fused"]
    for table in (some, none):
        np.testing.assert_array_equal(table["fused"], labelled["fused"])
    code, said = run("evaluate", "run", "data")
    assert code == 2
    assert said == (
        "cetnet: data/test: no column of numbers 'click' with the label, which metrics need; `cetnet predict` scores "
        "such rows\n"
    )


@pytest.mark.usefixtures("folder")
def test_a_row_that_cannot_be_scored_is_named(run: Run) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        return without_label(
            table.set_column(
                table.column_names.index("user"), "user", pa.array([*[1] * 25, 50, *[1] * 4], pa.int64())
            )
        )

    change(1, spoil)
    code, said = run("predict", "run", "data", "--out", "out.parquet")
    assert code == 2
    assert "part-00001.parquet, row group 1, row 25" in said
    assert "id 50 is outside table 'user'" in said
    assert not Path("out.parquet").exists()
    code, said = run("predict", "run", "data", "--out", "data/test/day=1/out.parquet")
    assert code == 2
    assert "data/test holds the rows of a dataset; name another place" in said


@pytest.mark.parametrize(
    "place",
    ["data/schema.yaml", "run/config.yaml", "data/train/scores.parquet", "data/test/day=1/scores.parquet"],
)
@pytest.mark.usefixtures("folder")
def test_predictions_replace_no_part_of_a_dataset_or_run(place: str, run: Run) -> None:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    code, said = run("predict", "run", "data", "--out", place)
    assert code == 2
    assert place in said
    assert "name another place" in said
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("folder")
def test_a_run_is_not_put_among_the_rows_of_a_dataset(run: Run) -> None:
    for key in ("run_dir=data/test/run", "checkpoint.path=data/train"):
        code, said = run("train", "experiment.yaml", "run_dir=another", key)
        assert code == 2, said
        assert "holds the rows of a dataset; choose another" in said
    assert not Path("another").exists()
