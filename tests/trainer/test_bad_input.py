"""Wrong configurations and bad data, through the command line: one clear line, exit code 2, nothing left."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cetnet.trainer.cli import main
from cetnet.trainer.processes.launcher import CETNET
from tests.data import write_dataset
from tests.paths import ROOT

MODEL = {"components": {"dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]}}}
HUGE = {"user": 8_000_000_000, "item": 40, "tag": 12, "query": 30}
INTERFORMER = "model.components={i: {kind: interformer, embedding_dim: 4, num_heads: 2}}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `data`, and `experiment.yaml`, whose run would go to `run`."""
    monkeypatch.chdir(tmp_path)
    write_dataset(Path("data"), {"train": 200, "validation": 60, "test": 60}, row_group_size=40)
    write_config({})
    return tmp_path


def write_config(sections: dict[str, Any]) -> None:
    settings = {
        "run_dir": "run",
        "data": {"path": "data", "batch_size": 16, "lanes": 4},
        "model": MODEL,
        "training": {"device": "cpu"},
    }
    Path("experiment.yaml").write_text(yaml.safe_dump(settings | sections), encoding="utf-8")


@pytest.fixture
def stderr_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `cetnet ARGUMENTS` in this process, asserts exit code 2 and returns what it said."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["cetnet", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        return capfd.readouterr().err

    return run


def assert_one_line(stderr: str, *named: str) -> None:
    assert stderr.endswith("\n")
    (line,) = stderr.splitlines()
    assert line.startswith("cetnet: ")
    for text in named:
        assert text in line


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["training.sede=1"], ["experiment.yaml", "training.sede", "unknown key"]),
        (["model.components.dcnv2.depth=1"], ["model.components", "depth", "unknown key"]),
        (["training.epochs=many"], ["training.epochs", "integer", "'many'"]),
        (["optimizer.dense.lr=-1"], ["optimizer.dense.lr", "-1"]),
        (["training.seed"], ["'training.seed'", "key=value"]),
        (["training.seed=["], ["'training.seed=['", "YAML"]),
        (
            ["model.components.dcnv2.kind=mlp"],
            ["'mlp'", "dcn, dcnv2, deepfm", "or the dotted path of a class"],
        ),
        (["model.components.dcnv2.kind=[]"], ["unknown component kind []"]),
        (["model.components.dcnv2.embedding_dim=0"], ["embedding_dim", "greater than 0"]),
        ([INTERFORMER, "model.components.i.num_heads=3"], ["num_heads"]),
        (["model.components=[dcnv2]"], ["model.components"]),
        (["data.batch_size=18"], ["data.batch_size=18", "data.lanes=4", "16"]),
        (["data.lanes=6", "data.batch_size=24", "--nproc=4"], ["data.lanes=6", "4 processes"]),
        (["--nproc=3"], ["processes"]),
        (["data.order=sequential", "--nproc=3"], ["data.batch_size=16", "3 processes"]),
        (["data.path=elsewhere"], ["elsewhere/schema.yaml", "cetnet prepare"]),
        (["data.split=trian"], ["data/trian", "test, train, validation"]),
        (["evaluation.splits=[tests]"], ["data/tests", "test, train, validation"]),
        (["evaluation.validation=valid", "evaluation.every_epoch=true"], ["data/valid"]),
        (["evaluation.early_stopping={}"], ["evaluation.early_stopping", "evaluation.every_epoch"]),
        (
            ["evaluation.early_stopping={monitor: AUC}", "evaluation.every_epoch=true"],
            ["evaluation.early_stopping.monitor", "'AUC'", "auc/fused"],
        ),
        (
            ["sharding.constraints={dhen__*: {sharding_types: [row_wise]}}"],
            ["sharding.constraints", "'dhen__*'", "dcnv2__user"],
        ),
        (["sharding.dense_tables=[user]"], ["sharding.dense_tables", "'user'", "dcnv2__user"]),
        (
            [INTERFORMER, "sharding.constraints={i__item: {sharding_types: [grid_shard]}}"],
            ["sharding.constraints", "i__item", "grid_shard"],
        ),
        (["sharding.cluster.ddr_gb=1e-6"], ["no sharding plan"]),
        (["optimizer.sparse.kind=adam"], ["optimizer.sparse.kind=adam", "CUDA", "rowwise_adagrad"]),
    ],
    ids=lambda value: value[-1][:40],
)
@pytest.mark.usefixtures("folder")
def test_wrong_configurations(overrides: list[str], named: list[str], stderr_of: Callable[..., str]) -> None:
    assert_one_line(stderr_of("train", "experiment.yaml", *overrides), *named)
    assert not Path("run").exists()


@pytest.mark.usefixtures("folder")
def test_a_missing_key(stderr_of: Callable[..., str]) -> None:
    Path("experiment.yaml").write_text("data: {path: data}", encoding="utf-8")
    assert_one_line(stderr_of("train", "experiment.yaml"), "experiment.yaml", "model: is missing")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, ["experiment.yaml", "no such file"]),
        ("data: [unclosed\nmodel: }", ["experiment.yaml", "YAML", "line 2"]),
        ("- a list", ["experiment.yaml", "mapping"]),
        ("", ["experiment.yaml", "mapping"]),
        (b"\xff\xfe\x00", ["experiment.yaml", "YAML"]),
    ],
    ids=["missing", "not YAML", "a list", "empty", "binary"],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_unreadable_experiment_files(
    folder: Path, content: str | bytes | None, named: list[str], command: str, stderr_of: Callable[..., str]
) -> None:
    file = folder / "experiment.yaml"
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_one_line(stderr_of(command, "experiment.yaml"), *named)
    assert not (folder / "run").exists()


def edit_schema(**changes: Any) -> None:
    file = Path("data/schema.yaml")
    file.write_text(
        yaml.safe_dump(yaml.safe_load(file.read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )


def edit_table(change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of the second training file, whose row groups have 40 rows."""
    file = Path("data/train/part-00001.parquet")
    pq.write_table(change(pq.read_table(file)), file, row_group_size=40)


def cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, table[name].cast(kind))


def set_value(name: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = value
        column = pa.array(values, table[name].type)
        return table.set_column(table.column_names.index(name), name, column)

    return change


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    pq.write_table(pq.read_table(file).slice(0, 0), file)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda: Path("data/schema.yaml").unlink(), ["data/schema.yaml", "cetnet prepare"]),
        (
            lambda: Path("data/schema.yaml").write_text("a: [b", encoding="utf-8"),
            ["data/schema.yaml", "YAML"],
        ),
        (lambda: Path("data/schema.yaml").write_text("", encoding="utf-8"), ["data/schema.yaml"]),
        (lambda: edit_schema(colour="red"), ["data/schema.yaml", "colour"]),
        (lambda: edit_schema(tables={"user": 50}), ["data/schema.yaml", "'item'", "not in tables"]),
        (
            lambda: (edit_schema(tables=HUGE), write_config({"sharding": {"dense_tables": ["*user"]}})),  # type: ignore[func-returns-value]
            ["32,000,000,000 of sharding.dense_tables", "GiB"],
        ),
        (lambda: edit_schema(group="visit"), ["data/", "part-00000.parquet", "'visit'", "session"]),
        (lambda: edit_table(lambda table: table.drop("price")), ["train/part-00001.parquet", "'price'"]),
        (
            lambda: edit_table(cast("price", pa.string())),
            ["part-00001.parquet", "'price'", "string", "a number"],
        ),
        (
            lambda: edit_table(cast("item", pa.float32())),
            ["part-00001.parquet", "'item'", "float", "an integer"],
        ),
        (
            lambda: edit_table(cast("history", pa.list_(pa.float32()))),
            ["part-00001.parquet", "'history'", "list<", "a list of integers"],
        ),
        (lambda: truncate(Path("data/train/part-00001.parquet")), ["train/part-00001.parquet", "Parquet"]),
        (lambda: truncate(Path("data/test/part-00000.parquet")), ["test/part-00000.parquet", "Parquet"]),
        (
            lambda: Path("data/train/part-00001.parquet").write_text("", encoding="utf-8"),
            ["train/part-00001.parquet", "Parquet"],
        ),
        (lambda: [empty(file) for file in Path("data/test").iterdir()], ["data/test", "no rows"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("folder")
def test_bad_data_that_is_found_before_training(
    damage: Callable[[], object], named: list[str], stderr_of: Callable[..., str]
) -> None:
    damage()
    assert_one_line(stderr_of("train", "experiment.yaml"), *named)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("user", 50, "id 50 is outside table 'user' of 50 rows"),
        ("user", -1, "id -1 is outside table 'user' of 50 rows"),
        ("history", [3, 40], "id 40 is outside table 'item' of 40 rows"),
        ("tags", [3, None], "a null id"),
        ("tags", None, "null"),
        ("history", [1] * 7, "a sequence of 7 ids, longer than max_length 6"),
        ("click", None, "null"),
        ("click", 2, "2 is neither 0 nor 1"),
        ("price", float("nan"), "nan is not a finite number"),
        ("price", float("inf"), "inf is not a finite number"),
        ("weight", -1.0, "-1.0 is not a finite number of 0 or more"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_bad_values(column: str, value: Any, problem: str, stderr_of: Callable[..., str]) -> None:
    write_dataset(Path("data"), {"train": 200, "test": 60}, row_group_size=40, weight=True)
    write_config({"evaluation": {"splits": ["test"]}})
    edit_table(set_value(column, 43, value))
    place = "train/part-00001.parquet, row group 1"
    stderr = stderr_of("train", "experiment.yaml")
    assert_last_line(stderr, place, f"column '{column}'", problem, "data.bad_rows=quarantine")
    assert_nothing_half_written()


@pytest.mark.usefixtures("folder")
def test_too_many_bad_rows(stderr_of: Callable[..., str]) -> None:
    edit_table(set_value("user", 43, 50))
    quarantine = ["data.bad_rows=quarantine", "data.bad_rows_limit=0"]
    stderr = stderr_of("train", "experiment.yaml", *quarantine)
    assert_last_line(stderr, "run/quarantine", "data.bad_rows_limit=0", "--resume")
    assert_nothing_half_written()


@pytest.mark.usefixtures("folder")
def test_a_damaged_page(stderr_of: Callable[..., str]) -> None:
    file = Path("data/train/part-00001.parquet")
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)  # the first page of the first column; the footer is whole
    file.write_bytes(content)
    place = "train/part-00001.parquet, row group 0"
    assert_last_line(stderr_of("train", "experiment.yaml"), place, "cannot be read", "prepare")
    assert_nothing_half_written()


@pytest.mark.usefixtures("folder")
def test_a_checkpoint_under_way_becomes_whole(stderr_of: Callable[..., str]) -> None:
    write_config({"checkpoint": {"every_steps": 1, "keep": 100}})
    edit_table(set_value("history", 90, [1] * 7))  # which no footer tells of
    assert_last_line(stderr_of("train", "experiment.yaml", "data.order=sequential"), "row group 2")
    steps = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert steps == [f"step-{step + 1:09d}" for step in range(len(steps))]
    assert steps
    assert all((Path("run/checkpoints") / step / ".metadata").exists() for step in steps)


@pytest.mark.usefixtures("folder")
def test_a_taken_run_folder_is_not_touched(stderr_of: Callable[..., str]) -> None:
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine", encoding="utf-8")
    assert_one_line(stderr_of("train", "experiment.yaml"), "run exists", "--resume", "run_dir")
    assert [path.name for path in Path("run").iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("run_dir", ["experiment.yaml", "experiment.yaml/below"])
def test_a_run_folder_that_is_a_file(run_dir: str, stderr_of: Callable[..., str]) -> None:
    assert_one_line(
        stderr_of("train", "experiment.yaml", f"run_dir={run_dir}"),
        run_dir,
        "experiment.yaml is not a directory",
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["evaluate", "nowhere", "data"], ["nowhere", "config.yaml"]),
        (["evaluate", "nowhere", "data", "--nproc=2"], ["nowhere", "config.yaml"]),
        (["predict", "nowhere", "data", "--out=out.parquet"], ["nowhere", "config.yaml"]),
        (["plan", "experiment.yaml", "training.sede=1"], ["training.sede"]),
        (["plan", "experiment.yaml", "sharding.dense_tables=[user]"], ["sharding.dense_tables", "'user'"]),
        (["plan", "experiment.yaml", "sharding.cluster.hbm_gb=1e-6"], ["no sharding plan"]),
        (["plan", "experiment.yaml", "data.path=elsewhere"], ["elsewhere/schema.yaml"]),
    ],
)
def test_other_commands(arguments: list[str], named: list[str], stderr_of: Callable[..., str]) -> None:
    assert_one_line(stderr_of(*arguments), *named)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["data", "experiment.yaml"]


@pytest.mark.usefixtures("folder")
def test_scoring_data_of_another_schema(
    stderr_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cetnet", "train", "experiment.yaml", "training.max_steps=2"])
    with pytest.raises(SystemExit, match="0"):
        main()
    capfd.readouterr()
    schema = yaml.safe_load(Path("data/schema.yaml").read_text(encoding="utf-8"))
    features = schema["features"]
    for changes, named in (
        ({"tables": schema["tables"] | {"user": 51}}, "table 'user'"),
        ({"features": features[:-1]}, "feature 'age'"),
        ({"features": features[::-1]}, "another order"),
    ):
        Path("data/schema.yaml").write_text(yaml.safe_dump(schema | changes), encoding="utf-8")
        assert_one_line(stderr_of("evaluate", "run", "data"), "data", named)
    assert_one_line(stderr_of("train", "experiment.yaml", "--resume"), "run", "finished")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train"], "config"),
        (["train", "experiment.yaml", "--frobnicate"], "--frobnicate"),
        (["train", "experiment.yaml", "--nproc=0"], "--nproc"),
        (["plan", "experiment.yaml", "--device=tpu"], "tpu"),
        (["trian", "experiment.yaml"], "trian"),
    ],
)
def test_usage_errors(arguments: list[str], named: str, stderr_of: Callable[..., str]) -> None:
    stderr = stderr_of(*arguments)
    assert named in stderr
    assert "Traceback" not in stderr


@pytest.mark.usefixtures("folder")
def test_nothing_else_is_said_in_a_process_of_its_own() -> None:
    done = run_process("train", "experiment.yaml", "sharding.cluster.ddr_gb=1e-6")
    assert done.returncode == 2
    assert_one_line(done.stderr, "no sharding plan")
    assert not done.stdout
    assert not Path("run").exists()


@pytest.mark.usefixtures("folder")
def test_of_two_processes_one_speaks_of_a_mistake_that_one_meets() -> None:
    edit_table(set_value("history", 90, [1] * 7))
    done = run_process("train", "experiment.yaml", "data.shuffle_rows=1", "--nproc=2")
    assert done.returncode == 2
    assert_last_line(done.stderr, "row group 2", "column 'history'")
    assert_nothing_half_written()


def run_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CETNET, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def assert_last_line(stderr: str, *named: str) -> None:
    """The last line tells the mistake; before it there is the progress of the run, and no traceback."""
    assert "Traceback" not in stderr
    assert stderr.count("cetnet: ") == 1
    assert_one_line(stderr.splitlines(keepends=True)[-1], *named)


def assert_nothing_half_written() -> None:
    assert not Path("run/result.json").exists()
    left = [path for path in Path("run").rglob("*") if path.name.startswith(".") or "checkpoint" in path.name]
    assert not left
