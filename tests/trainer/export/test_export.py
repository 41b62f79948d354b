"""`cetnet export`: from any checkpoint to a folder that gives what the run gave, whole or not at all."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tests.bucket  # noqa: F401, what fsspec knows as bucket://
from cetnet.models.served import Rows
from cetnet.trainer.errors import UserError
from cetnet.trainer.export.command import export
from cetnet.trainer.export.export import find_checkpoint
from cetnet.trainer.export.place import check_place, written_aside
from cetnet.trainer.export.quantize import NARROW, Stored, store_tables, table_bytes
from cetnet.trainer.export.scorer import Scorer
from cetnet.trainer.export.verify import verify_export
from cetnet.trainer.processes.distributed import Processes
from cetnet.trainer.run_folder import load_run
from tests.data import write_dataset
from tests.processes import run_processes, run_settings, train_all

COMPONENTS = {
    "din": {"kind": "din", "embedding_dim": 8, "hidden_units": [8], "attention_units": [4]},
    "deepfm": {"kind": "deepfm", "embedding_dim": 4, "hidden_units": [8]},
}


def train(processes: Processes, folder: Path) -> None:
    os.chdir(folder)
    sections = {
        "model": {"components": COMPONENTS},
        "checkpoint": {"path": "bucket://runs/a", "every_steps": 2, "keep": 2},
        "evaluation": {
            "splits": ["test"],
            "every_steps": 2,
            "early_stopping": {"monitor": "ne/fused", "patience": 9},
        },
        "sharding": {
            "dense_tables": ["din__tag"],
            "constraints": {
                "din__item": {"sharding_types": ["row_wise"]},
                "deepfm__*": {"sharding_types": ["column_wise"]},
            },
        },
    }
    train_all(processes, [run_settings(Path("data"), Path("run"), **sections)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, its checkpoints in an object store."""
    folder = tmp_path_factory.mktemp("export")
    write_dataset(folder / "data", {"train": 320, "validation": 64, "test": 100})
    (folder / "buckets").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUCKETS", str(folder / "buckets"))
        run_processes(train, 2, folder)
        patch.chdir(folder)
        yield Path("run")


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    export(run, Path("out/export"))
    return Path("out/export")


def rows_of_test() -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(Path("data/test").iterdir()))


def test_an_export_gives_what_the_sharded_run_gave(run: Path, exported: Path) -> None:
    """Against `predictions/`, which two processes with sharded tables wrote."""
    before = pq.read_table(run / "predictions/test.parquet")
    scorer = Scorer(exported)
    scores = scorer.score(rows_of_test().take(before["row"]))
    assert scorer.outputs == ["fused", "din", "deepfm"]
    for name in scorer.outputs:
        np.testing.assert_allclose(scores[name], before[name].to_numpy(), rtol=0, atol=1e-6)


def test_an_export_says_what_it_is_of(run: Path, exported: Path) -> None:
    about = json.loads((exported / "about.json").read_text())
    result = json.loads((run / "result.json").read_text())
    assert (about["run"], about["step"], about["rows"]) == ("run", result["steps"], result["rows"])
    assert about["metrics"]["test"] == result["splits"]["test"]
    assert about["components"] == {"din": "din", "deepfm": "deepfm"}
    assert about["largest_difference"]["pt2"] <= about["tolerance"]
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert set(about["sha256"]) | {"about.json"} == files
    assert {"model.pt2", "predict.py", "request.json", "examples.parquet", "encoder/encode.py"} <= files


def test_an_export_is_replaced_by_one_of_the_best_checkpoint_in_float16(run: Path, exported: Path) -> None:
    with pytest.raises(UserError, match="exists; replace it with --overwrite"):
        export(run, exported)
    before = pq.read_table(run / "predictions/test.parquet")
    export(run, exported, checkpoint="best", fp16=True, overwrite=True)
    about = json.loads((exported / "about.json").read_text())
    assert about["checkpoint"].startswith("best")
    assert about["tables"] == "float16"
    assert about["table_bytes"] / about["table_bytes_float32"] == 0.5
    compared = about["compared"]
    assert compared["rows"] == 100
    assert "ne/fused" in about["metrics"]["validation"]
    # A finished run ends with its best model.
    result = json.loads((run / "result.json").read_text())
    assert compared["ne_float32"] == pytest.approx(result["splits"]["test"]["ne/fused"], abs=1e-6)
    assert compared["ne"] == pytest.approx(compared["ne_float32"], abs=1e-3)
    scores = Scorer(exported).score(rows_of_test().take(before["row"]))
    np.testing.assert_allclose(scores["fused"], before["fused"].to_numpy(), rtol=0, atol=2e-3)
    assert sorted(path.name for path in exported.parent.iterdir()) == [exported.name]


def test_an_export_that_gives_something_else_is_refused(exported: Path) -> None:
    examples = pq.read_table(exported / "examples.parquet")
    names = examples.column_names
    wrong = pa.array(examples["expected/din"].to_numpy() + np.float32(1e-4))
    examples = examples.set_column(names.index("expected/din"), "expected/din", wrong)
    pq.write_table(examples, exported / "examples.parquet")
    with pytest.raises(
        UserError, match=r"pt2: the export's probabilities differ from the trained .* by 1\.0e-04"
    ):
        verify_export(exported, "pt2")


def test_checkpoints_are_found_by_name_and_step(run: Path) -> None:
    config, _ = load_run(run)
    newest = find_checkpoint(run, config, "newest")
    assert newest.name.startswith("step-000000005")
    assert find_checkpoint(run, config, "best").name.startswith("best")
    assert find_checkpoint(run, config, "5").name == newest.name
    with pytest.raises(UserError, match="no checkpoint of step 77; there are 4, 5"):
        find_checkpoint(run, config, "77")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": True, "fp16": True}, "--int8 and --fp16 exclude each other"),
        ({"checkpoint": "last"}, "--checkpoint 'last' is neither newest nor best nor a step"),
        ({"target": ["pt2,triton"]}, "--target 'triton' is none of"),
        ({"run": Path("data")}, "data: no config.yaml here"),
        ({"out": Path("data/test/export")}, "data/test holds the rows of a dataset"),
        ({"out": Path("run"), "overwrite": True}, "run exists and is no export"),
        ({"out": Path("/proc/export")}, "/proc is not a directory one may write to"),
        ({"fp16": True, "data": Path("nowhere")}, "nowhere"),
    ],
)
def test_mistakes_are_found_before_torch_is_needed(run: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export(**{"run": run, "out": Path("new/export"), **options})
    assert not Path("new").exists()


def test_what_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    def broken_off() -> None:
        with written_aside(tmp_path / "a/b") as folder:
            (folder / "about.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert list(tmp_path.iterdir()) == []


def test_two_commands_do_not_write_to_one_place(tmp_path: Path) -> None:
    with (
        written_aside(tmp_path / "a"),
        pytest.raises(UserError, match="another process exports to it"),
        written_aside(tmp_path / "a"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_who_looks_sees_the_old_export_or_the_new_one(tmp_path: Path) -> None:
    out, stop, seen = tmp_path / "export", threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            seen.add((out / "about.json").read_text())  # of what isn't there, or is half there, this fails

    contents = [json.dumps({"format": 1, "sha256": {}, "number": i}) for i in range(100)]
    thread = threading.Thread(target=look)
    for content in contents:
        check_place(out, overwrite=True)
        with written_aside(out) as folder:
            (folder / "about.json").write_text(content)
        if content == contents[0]:
            thread.start()
    stop.set()
    thread.join()
    assert seen <= set(contents)
    assert (out / "about.json").read_text() == contents[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


class Tables(nn.Module):
    """As many tables as a served model may have."""

    def __init__(self, *blocks: torch.Tensor) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Rows(block, block.shape[1]) for block in blocks)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.sampled_from((1, 4, NARROW, 10, 16, 33)),
    st.floats(-12, 6),
    st.sampled_from(("float16", "int8")),
)
def test_stored_tables_are_off_by_half_a_step_at_most(
    seed: int, rows: int, dim: int, magnitude: float, stored: Stored
) -> None:
    """The step: of int8 a 127th of the row's largest number, of float16 that of the number."""
    weight = torch.randn(rows + 1, dim, generator=torch.Generator().manual_seed(seed)) * 2**magnitude
    weight[0], weight[-1] = 0, 0
    tables = Tables(weight.clone())
    store_tables(tables, stored)  # type: ignore[arg-type]
    found = tables.blocks[0](torch.arange(rows + 1))
    assert found.dtype == torch.float32
    small = stored == "int8" and dim >= NARROW
    step = weight.abs().amax(1, keepdim=True) / 127 if small else weight.abs() * 2**-10
    # float16's own steps, of the scale and near zero.
    allowed = 0.5 * step * (1 + 2**-9) + (127 * 2**-25 if small else 2**-25)
    assert (found - weight).abs().le(allowed).all()
    assert found[-1].eq(0).all()
    assert table_bytes(tables) == (rows + 1) * ((dim + 2) if small else 2 * dim)  # type: ignore[arg-type]


def test_numbers_beyond_float16_are_refused() -> None:
    with pytest.raises(UserError, match="beyond float16"):
        store_tables(Tables(torch.full((2, 4), 1e5)), "float16")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="beyond 8 million"):
        store_tables(Tables(torch.full((2, 8), 1e8)), "int8")  # type: ignore[arg-type]
