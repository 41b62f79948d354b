"""Bad rows under `data.bad_rows=quarantine`: skipped in their places, once per epoch, as if their weight were 0."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cetnet.trainer.train
from cetnet.models.batch import Batch
from cetnet.models.cetnet import Predictions
from cetnet.trainer.check_run import check_run
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.quarantine import Quarantine
from cetnet.trainer.data.reader import Order, Reader
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.scoring import Scores
from cetnet.trainer.session import Session, run_pipeline
from cetnet.trainer.train import train
from cetnet.trainer.yaml_files import save_yaml
from tests.data import make_schema, make_table, write_split
from tests.processes import TRAINING, run_processes, run_settings
from tests.trainer.data.test_reader import contents

ROWS, LAYOUT = 1290, [[100] * 6, [100] * 6 + [90]]
SCHEMA = make_schema(weight=True)
# Row of the split, column, value.
BAD: list[tuple[int, str, Any]] = [
    (3, "user", -1),
    (40, "item", 40),
    (41, "item", None),
    (150, "tags", [1, None]),
    (260, "tags", None),
    (333, "history", [1] * 7),
    (460, "queries", [1, 30]),
    (599, "price", math.nan),
    (600, "age", math.inf),
    (777, "click", 2),
    (778, "weight", -1.0),
    (1289, "weight", None),
]
BAD_ROWS = [row for row, _, _ in BAD]
GOOD_ROWS = set(range(ROWS)).difference(BAD_ROWS)


def write_data(path: Path, table: pa.Table, other: pa.Table) -> Path:
    path.mkdir()
    save_yaml(path / "schema.yaml", SCHEMA)
    write_split(path / "train", table, LAYOUT)
    write_split(path / "test", other, [[100, other.num_rows - 100]])
    return path


def damaged(table: pa.Table, values: list[tuple[int, str, Any]]) -> pa.Table:
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for row, name, value in values:
        columns[name][row] = value
    return pa.table({name: pa.array(columns[name], table[name].type) for name in columns})


def number(file: Path, row: int) -> int:
    """A row's number in the split."""
    return row + (sum(LAYOUT[0]) if file.name == "part-00001.parquet" else 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bad` has bad rows, in both splits; in `weightless` they are good, and have the weight 0."""
    folder = tmp_path_factory.mktemp("quarantine")
    table, other = make_table(SCHEMA, ROWS), make_table(SCHEMA, 200, seed=1)
    write_data(folder / "bad", damaged(table, BAD), damaged(other, [(7, "user", 50), (8, "click", None)]))
    weightless = damaged(table, [(row, "weight", 0.0) for row in BAD_ROWS])
    write_data(folder / "weightless", weightless, other.take(np.delete(np.arange(200), [7, 8])))
    return folder


@pytest.mark.parametrize("order", ["shuffled", "sequential", "partitioned"])
def test_bad_rows_keep_their_places(folder: Path, order: Order) -> None:
    bad = Dataset(folder / "bad", "train", "quarantine")
    whole = Dataset(folder / "weightless", "train")
    for world_size in (1, 2, 4):
        seen = []
        for rank in range(world_size):
            one, other = (
                Reader(data, 64, order=order, lanes=4, shuffle_rows=150, rank=rank, world_size=world_size)
                for data in (bad, whole)
            )
            for step, (batch, good) in enumerate(zip(one.batches(1), other.batches(1), strict=True)):
                expected = [row if row[0] in GOOD_ROWS else 0 for row in contents(good)]
                assert [row if row[0] >= 0 else row[2] for row in contents(batch)] == expected
                rows = [number(row.file, row.row) for row in one.bad_rows.get(step, [])]
                assert rows == [row for row in good.row.tolist() if row in BAD_ROWS]
                seen += rows
        assert sorted(seen) == BAD_ROWS


def test_bad_rows_of_hashed_tables(tmp_path: Path) -> None:
    schema = SCHEMA.model_copy(update={"hashed": ("item",)})
    table = make_table(SCHEMA, 60)
    for name, values in (("bad", damaged(table, [(25, "history", [1] * 7)])), ("whole", table)):
        (tmp_path / name).mkdir()
        save_yaml(tmp_path / name / "schema.yaml", schema)
        write_split(tmp_path / name / "train", values, [[20, 40]])
    bad, whole = (
        [row for batch in Reader(data, 20, order="sequential").batches(0) for row in contents(batch)]
        for data in (Dataset(tmp_path / "bad", "train", "quarantine"), Dataset(tmp_path / "whole", "train"))
    )
    assert bad[25][0] == -1
    assert bad[:25] + bad[26:] == whole[:25] + whole[26:]


def test_what_is_said_of_a_bad_row(folder: Path) -> None:
    rows = {row.row: row for row in list_bad(Dataset(folder / "bad", "train", "quarantine"))}
    file = folder / "bad/train/part-00001.parquet"
    assert str(rows[177]) == (
        f"{file}, row group 1, row 177 (of the file, from 0), column 'click': 2 is neither 0 nor 1"
    )
    with pytest.raises(
        UserError, match=r"part-00000.parquet, row group 0, row 3 .*'user': id -1 is outside .*2 more"
    ):
        list_bad(Dataset(folder / "bad", "train"))


def list_bad(dataset: Dataset) -> list[Any]:
    reader = Reader(dataset, 10, order="sequential")
    for _ in reader.batches(0):
        pass
    return [row for rows in reader.bad_rows.values() for row in rows]


def test_an_evaluation_without_a_good_row(folder: Path) -> None:
    scores = Scores(
        Dataset(folder / "bad", "test", "quarantine"), {"fused": np.empty(0)}, np.zeros(200, np.bool_)
    )
    metrics, notes = scores.measure()
    assert metrics.pop("rows") == 0
    assert all(map(math.isnan, metrics.values()))
    assert notes == ["no NE, AUC, gAUC, LogLoss, calibration (-): there is no good row"]


def test_a_row_group_without_a_good_row(tmp_path: Path) -> None:
    table = make_table(SCHEMA, 20)
    bad = damaged(table, [(row, "user", 99) for row in range(20)])
    save_yaml(tmp_path / "schema.yaml", SCHEMA)
    write_split(tmp_path / "train", pa.concat_tables([bad, table]), [[20, 20]])
    first, second = Reader(Dataset(tmp_path, "train", "quarantine"), 20, order="sequential").batches(0)
    assert first.row.tolist() == [-1] * 20
    assert not first.weight.any()
    assert not first.dense.any()
    assert not first.sparse.values().any()
    assert second.row.tolist() == list(range(20, 40))


def settings(folder: Path, data: str, run: str, **changes: Any) -> dict[str, Any]:
    sections = run_settings(
        folder / data,
        folder / run,
        model={"components": {"dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [16]}}},
        checkpoint={"every_steps": 5},
        # The base rate is of rows whose label and weight are good, whatever their features.
        training=TRAINING | {"start_at_base_rate": False},
    )
    return sections | {"data": sections["data"] | {"bad_rows": "quarantine"} | changes}


def train_in_many_ways(processes: Processes, folder: Path) -> None:
    def run(*arguments: Any, **changes: Any) -> None:
        train(
            check_run(
                RunConfig.model_validate(settings(folder, *arguments, **changes)), processes.world_size
            ),
            processes,
        )

    run("bad", "whole")
    run("weightless", "reference")
    with pytest.raises(UserError, match="bad_rows_limit=11 bad rows") as over:
        run("bad", "limited", bad_rows_limit=11)
    (folder / f"limited-{processes.rank}.txt").write_text(str(over.value))

    def cut(session: Session, batches: Iterable[Batch]) -> Iterator[Predictions]:
        for step, predictions in enumerate(run_pipeline(session, batches), 1):
            yield predictions
            if step == 13:  # it has a bad row since the checkpoint of step 10
                raise UserError("cut off")  # an end that waits for the checkpoint under way

    cetnet.trainer.train.run_pipeline = cut
    with pytest.raises(UserError, match="cut off"):
        run("bad", "killed")


def skipped(run: Path) -> list[tuple[int, str, int, str]]:
    lines = [
        json.loads(line) for file in run.glob("quarantine/rank-*") for line in file.read_text().splitlines()
    ]
    return sorted((line["step"], line["file"], line["row"], line["column"]) for line in lines)


def test_as_if_the_weight_were_0_and_on_another_world_size(folder: Path) -> None:
    run_processes(train_in_many_ways, 2, folder)
    whole, weightless = (
        json.loads((folder / run / "result.json").read_text()) for run in ("whole", "reference")
    )
    assert (whole["quarantined"], whole["rows"]) == (len(BAD), ROWS - len(BAD))
    assert whole["train"] == pytest.approx(weightless["train"], abs=1e-6)
    assert whole["splits"]["test"] == pytest.approx(weightless["splits"]["test"], abs=1e-6)
    assert whole["splits"]["test"]["rows"] == 198
    assert pq.read_table(folder / "whole/predictions/test.parquet")["row"].to_pylist() == [
        row for row in range(200) if row not in (7, 8)
    ]
    left_out = [
        json.loads(line)
        for line in (folder / "whole/quarantine/evaluation-test.jsonl").read_text().splitlines()
    ]
    assert [(line["row"], line["column"]) for line in left_out] == [(7, "user"), (8, "click")]

    rows = skipped(folder / "whole")
    assert sorted(number(Path(file), row) for _, file, row, _ in rows) == BAD_ROWS
    assert sorted(column for *_, column in rows) == sorted(column for _, column, _ in BAD)

    before = skipped(folder / "killed")
    newest = max(int(path.name[5:]) for path in (folder / "killed/checkpoints").iterdir())
    assert any(step > newest for step, *_ in before)
    (folder / "killed/quarantine/rank-00001.jsonl").open("a").write('{"step": 1, "fi')  # cut short
    state = json.loads((folder / f"killed/checkpoints/step-{newest:09d}/trainer.json").read_text())
    saved = state["progress"]["quarantined"]
    assert saved == sum(step <= newest for step, *_ in before) > 0
    with process_group("cpu") as processes:
        assert Quarantine(folder / "lost", saved, newest, saved, processes).count == saved
        with pytest.raises(UserError, match="bad_rows_limit=1 "):
            Quarantine(folder / "lost", 1, newest, saved, processes)
        train(
            check_run(
                RunConfig.model_validate(settings(folder, "bad", "killed")), processes.world_size, resume=True
            ),
            processes,
        )
    assert skipped(folder / "killed") == skipped(folder / "whole")
    resumed = json.loads((folder / "killed/result.json").read_text())
    assert (resumed["quarantined"], resumed["rows"]) == (len(BAD), ROWS - len(BAD))
    assert resumed["train"] == pytest.approx(whole["train"], abs=1e-6)

    one, other = ((folder / f"limited-{rank}.txt").read_text() for rank in (0, 1))
    assert one == other
    assert len(skipped(folder / "limited")) == 12
