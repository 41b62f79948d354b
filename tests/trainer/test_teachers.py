"""A student gets its teachers' logits of its own rows, whatever the number of processes, and goes on with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cetnet.models.schema import Schema
from cetnet.trainer.check_run import check_run
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.errors import UserError
from cetnet.trainer.evaluate import predict_run
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.run_folder import teacher_files
from cetnet.trainer.teachers import taught_reader
from cetnet.trainer.yaml_files import read_model, save_yaml
from tests.data import write_dataset
from tests.processes import run_processes, run_settings, train_all

ROWS, BAD = 700, 123
DCNV2 = {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]}
Run = Callable[..., tuple[int, str]]


def settings(data: Path, run_dir: Path, seed: int = 7, **training: Any) -> dict[str, Any]:
    found = run_settings(
        data,
        run_dir,
        model={"components": {"dcnv2": DCNV2}},
        training={"log_every": 1, "seed": seed, "device": "cpu", **training},
        evaluation={"splits": ["test"]},
        checkpoint={"every_steps": 5, "keep": 10},
    )
    found["data"]["bad_rows"] = "quarantine"
    return found


def distil(processes: Processes, root: Path) -> None:
    """On these processes: two teachers, a student of both, and what its reader would give in another epoch."""
    data = root / "data"
    train_all(processes, [settings(data, root / "one"), settings(data, root / "two", seed=8)])
    teacher = {"runs": [str(root / "one"), str(root / "two")], "weighting": "adaptive"}
    student = settings(data, root / "student", teacher=teacher)
    train_all(processes, [student])
    write_batches(processes, student, root / f"read-by-{processes.world_size}")


def write_batches(processes: Processes, student: dict[str, Any], out: Path) -> None:
    """Row number and teachers' logits of all that comes from step 3 on, in the second epoch."""
    resumed = {**student, "run_dir": f"{student['run_dir']}-read-{processes.world_size}"}
    if processes.is_main:
        shutil.copytree(Path(student["run_dir"]) / "teachers", Path(resumed["run_dir"]) / "teachers")
    run = check_run(RunConfig.model_validate(resumed), processes.world_size, resume=True)
    batches = list(taught_reader(run, processes).batches(1, start=3))
    assert all(batch.teachers is not None for batch in batches)
    out.mkdir(exist_ok=True)
    np.save(out / f"{processes.rank}-row", np.concatenate([batch.row for batch in batches]))
    np.save(out / f"{processes.rank}-teachers", np.concatenate([batch.teachers for batch in batches]))  # type: ignore[misc]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("taught")
    write_dataset(root / "data", {"train": ROWS, "test": 200}, row_group_size=60, weight=True)
    file = root / "data/train/part-00000.parquet"
    table = pq.read_table(file)
    prices = table["price"].to_numpy().copy()
    prices[BAD] = np.nan
    index = table.column_names.index("price")
    pq.write_table(table.set_column(index, "price", pa.array(prices)), file, row_group_size=60)
    run_processes(distil, 2, root)
    return root


@pytest.fixture(scope="module")
def logits(made: Path) -> np.ndarray:
    """Of both teachers, `[ROWS, 2]`, as `cetnet predict` says them."""
    found = np.zeros((ROWS, 2))
    for column, run in enumerate(("one", "two")):
        predict_run(made / run, Dataset(made / "data", "train", "quarantine"), made / f"{run}.parquet")
        table = pq.read_table(made / f"{run}.parquet")
        probability = table["fused"].to_numpy()
        found[table["row"].to_numpy(), column] = np.log(probability / (1 - probability))
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_row_has_its_own_teachers(made: Path, logits: np.ndarray, world_size: int) -> None:
    out = made / f"read-by-{world_size}"
    if world_size == 1:
        with process_group("cpu") as processes:
            write_batches(processes, student_of(made), out)
    row, teachers = (
        np.concatenate([np.load(out / f"{rank}-{what}.npy") for rank in range(world_size)])
        for what in ("row", "teachers")
    )
    known = row >= 0
    assert not teachers[~known].any()
    assert set(row[known]) < set(range(ROWS)) - {BAD}
    assert len(set(row[known])) == known.sum() > ROWS // 2
    np.testing.assert_allclose(teachers[known], logits[row[known]], rtol=1e-5, atol=1e-5)


def student_of(made: Path, name: str = "student") -> dict[str, Any]:
    teacher = {"runs": [str(made / "one"), str(made / "two")], "weighting": "adaptive"}
    return settings(made / "data", made / name, teacher=teacher)


def test_a_student_that_was_cut_short_ends_as_if_it_had_not_been(made: Path) -> None:
    """On one process instead of two, after its teachers are gone."""
    cut = made / "cut"
    shutil.copytree(made / "student", cut)
    (cut / "result.json").unlink()
    for checkpoint in (cut / "checkpoints").glob("step-*"):
        if checkpoint.name != "step-000000005":
            shutil.rmtree(checkpoint)
    with process_group("cpu") as processes:
        for run in ("one", "two"):
            (made / run).rename(made / f"{run}-away")
        try:
            train_all(processes, [student_of(made, "cut")], resume=True)
        finally:
            for run in ("one", "two"):
                (made / f"{run}-away").rename(made / run)
    whole, resumed = (json.loads((made / run / "result.json").read_text()) for run in ("student", "cut"))
    assert whole["steps"] == 11
    assert resumed["train"] == pytest.approx(whole["train"], abs=1e-6)
    assert resumed["splits"]["test"] == pytest.approx(whole["splits"]["test"], abs=1e-6)


def test_it_learns_something_else_than_alone(made: Path) -> None:
    alone, taught = (json.loads((made / run / "result.json").read_text()) for run in ("one", "student"))
    assert alone["splits"]["test"]["ne/fused"] != taught["splits"]["test"]["ne/fused"]
    first, lone = (
        json.loads((made / run / "metrics.jsonl").read_text().splitlines()[0]) for run in ("student", "one")
    )
    assert first["ne/lifetime/fused"] == lone["ne/lifetime/fused"]  # of the same start, by the labels
    record = json.loads(teacher_files(made / "student", 2).record.read_text())
    assert record["run"] == str(made / "two")


@pytest.mark.parametrize("changed", ["teacher", "data"])
def test_what_other_teachers_said_or_of_other_rows_is_refused(made: Path, changed: str) -> None:
    run = made / f"changed-{changed}"
    shutil.copytree(made / "student/teachers", run / "teachers")
    record = teacher_files(run, 1).record
    record.write_text(json.dumps(json.loads(record.read_text()) | {changed: "other"}))
    checked = check_run(RunConfig.model_validate(student_of(made, run.name)), 1, resume=True)
    said = f"of another model than {made / 'one'} has now" if changed == "teacher" else "of other data"
    with process_group("cpu") as processes, pytest.raises(UserError, match=said):
        taught_reader(checked, processes)


def test_what_is_no_teacher_is_refused(made: Path, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "student.yaml"
    save_yaml(file, RunConfig.model_validate(settings(made / "data", tmp_path / "run")))

    def refused(*overrides: str) -> str:
        code, said = run("train", str(file), *overrides)
        assert (code, (tmp_path / "run").exists()) == (2, False)
        return said.replace("\n", "")

    assert "training.teacher: nowhere: no config.yaml here" in refused("training.teacher=nowhere")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(made / "one", unfinished, ignore=shutil.ignore_patterns("result.json", "checkpoints"))
    assert "unfinished is not finished" in refused(f"training.teacher={unfinished}")
    other = tmp_path / "other"
    shutil.copytree(made / "one", other, ignore=shutil.ignore_patterns("checkpoints"))
    schema = read_model(other / "schema.yaml", Schema)
    save_yaml(other / "schema.yaml", schema.model_copy(update={"tables": {**schema.tables, "user": 51}}))
    assert "table 'user' has 50 rows here and 51 in the run" in refused(
        f"training.teacher=[{made / 'one'}, {other}]"
    )
    assert "there is one; name more" in refused(
        f"training.teacher={{runs: {made / 'one'}, weighting: adaptive}}"
    )
