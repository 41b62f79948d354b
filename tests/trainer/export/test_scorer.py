"""Scoring by an export folder: as its model does, without this package too, and never by code in it."""

import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch

from cetnet.trainer.errors import UserError
from cetnet.trainer.export.examples import draw_examples
from cetnet.trainer.export.program_file import check_program
from cetnet.trainer.export.scorer import Scorer
from tests.trainer.export.toy import OUTPUTS, VALUES, expected_of, write_about, write_toy

STRANGER = """
import runpy, sys
for name in ("cetnet", "torchrec", "fbgemm_gpu", "polars", "pydantic"):
    sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "export"
    write_toy(folder)
    return folder


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a folder's `predict.py` in this process."""

    def predict(folder: Path, *arguments: Path) -> None:
        script = folder / "predict.py"
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", sys.path.copy())
        before = set(sys.modules)
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            for name in set(sys.modules) - before:
                if name.partition(".")[0] == "encoder":
                    del sys.modules[name]

    return predict


def test_examples_are_hard_ones_and_always_the_same(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    rows = draw_examples(request, folder)
    assert rows.num_rows == 64
    assert rows.equals(draw_examples(request, folder))
    assert not rows.equals(draw_examples(request, folder, seed=1))
    values = rows.to_pydict()
    known = {value for of_table in VALUES.values() for value in of_table}
    for name in ("the user's id", "item"):
        assert None in values[name]
        assert known & set(values[name])
        assert set(values[name]) - known - {None}
    lengths = {None if each is None else len(each) for each in values["history"]}
    assert {None, 0, 1, 4, 7} <= lengths
    assert set(values["device"]) - {None, 0, 1, 2}  # of a table of three rows
    assert max(abs(value or 0) for value in values["price"]) > 2**53
    assert None in values["age"]


def test_scores_without_this_package(folder: Path) -> None:
    """In a process that can't import it, started elsewhere."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", STRANGER, folder / "predict.py"],
        cwd=folder.parent,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("64 examples, largest difference ")


def test_scores_of_files(folder: Path, tmp_path: Path, predict: Callable[..., None]) -> None:
    """Of more than one batch; CSV's are Parquet's."""
    examples = pq.read_table(folder / "examples.parquet")
    raw = pa.concat_tables([examples] * 100).drop_columns([f"expected/{name}" for name in OUTPUTS])
    pq.write_table(raw, tmp_path / "rows.parquet")
    predict(folder, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert scores.column_names == OUTPUTS
    assert scores.num_rows == 6400
    for name, expected in zip(OUTPUTS, expected_of(folder), strict=True):
        np.testing.assert_allclose(scores[name], np.tile(expected, 100), rtol=0, atol=1e-6)
    cells = {
        name: [None if v is None else str(v) for v in raw[name].to_pylist()] for name in raw.column_names
    }
    sayable = np.full(raw.num_rows, True)  # in cells: a value with the separator is two, and none is no value
    for name in ("tags", "history"):
        lists = [[value or "" for value in row or []] for row in raw[name].to_pylist()]
        cells[name] = ["|".join(row) for row in lists]
        sayable &= [row != [""] and not any("|" in value for value in row) for row in lists]
    # A column that is not read need not be, to the end, what it looks like in the first megabyte.
    cells["note"] = ["1" * 200] * (raw.num_rows - 1) + ["none"]
    pa_csv.write_csv(pa.table(cells), tmp_path / "rows.csv")
    predict(folder, tmp_path / "rows.csv", tmp_path / "csv.parquet")
    of_cells = pq.read_table(tmp_path / "csv.parquet")
    assert sayable.mean() > 0.2
    for name in OUTPUTS:
        found, expected = of_cells[name].to_numpy(), scores[name].to_numpy()
        np.testing.assert_allclose(found[sayable], expected[sayable], rtol=0, atol=1e-6)


def test_other_answers_than_the_expected_ones_are_told(
    folder: Path, tmp_path: Path, predict: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    examples = pq.read_table(copy / "examples.parquet")
    wrong = pa.array([*examples["expected/deep"].to_pylist()[:-1], np.nan], pa.float32())
    place = examples.column_names.index("expected/deep")
    pq.write_table(examples.set_column(place, "expected/deep", wrong), copy / "examples.parquet")
    with pytest.raises(SystemExit) as stop:
        predict(copy)
    assert stop.value.code
    assert capsys.readouterr().out == "64 examples, largest difference nan\n"


def test_a_wrong_value_is_named_by_its_row_in_the_file(
    folder: Path, tmp_path: Path, predict: Callable[..., None]
) -> None:
    rows = pa.concat_tables([pq.read_table(folder / "examples.parquet")] * 100)
    prices = pa.array(["7"] * 5000 + ["cheap"] + ["8"] * 1399)
    rows = rows.set_column(rows.column_names.index("price"), "price", prices)
    pq.write_table(rows, tmp_path / "rows.parquet")
    with pytest.raises(
        ValueError, match=r"column 'price', row 5000 \(from 0\): expected a finite .*, found 'cheap'$"
    ):
        predict(folder, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    assert not (tmp_path / "scores.parquet").exists()


def test_threads_share_a_scorer(folder: Path) -> None:
    scorer, other = Scorer(folder, "pt2"), Scorer(folder)
    assert (scorer.target, scorer.outputs) == ("pt2", OUTPUTS)
    examples = pq.read_table(folder / "examples.parquet")
    expected = expected_of(folder)

    def check(start: int) -> None:
        part = examples.slice(start, 1 + start % 7)
        for each in (scorer, other):
            found = each.score(part)
            for name, of_output in zip(OUTPUTS, expected, strict=True):
                np.testing.assert_allclose(
                    found[name], of_output[start : start + part.num_rows], rtol=0, atol=1e-6
                )
                assert found[name].dtype == np.float32

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(check, range(64)))
    assert {name: len(of) for name, of in scorer.score(examples.slice(0, 0)).items()} == dict.fromkeys(
        OUTPUTS, 0
    )


def test_inputs_are_checked_before_the_model_has_them(folder: Path) -> None:
    scorer = Scorer(folder)
    good = scorer.encoder.encode(pq.read_table(folder / "examples.parquet").slice(0, 5))
    for change in (
        {"dense": good["dense"].astype(np.float64)},
        {"categorical": good["categorical"].astype(np.int32)},
        {"categorical": good["categorical"][:4]},
        {"categorical": good["categorical"][:, :3]},
        {"sequences": good["sequences"][:, :, :0]},
        {"sequences": good["sequences"][:, 0]},
        {"more": good["dense"]},
        {name: array[:0] for name, array in good.items()},
    ):
        with pytest.raises(ValueError, match=r"^inputs? .*, but the model takes "):
            scorer.run(good | change)
    with pytest.raises(ValueError, match=r"^inputs "):
        scorer.run({"dense": good["dense"]})
    wild = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, good["sequences"].shape)
    assert np.isfinite(scorer.run(good | {"sequences": wild})).all()
    assert np.array_equal(
        scorer.run({name: array[::-1] for name, array in good.items()}), scorer.run(good)[:, ::-1]
    )


def test_folders_that_are_no_export_or_damaged(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no export, .*about.json is missing; make one with `cetnet export`"):
        Scorer(tmp_path)
    with pytest.raises(UserError, match=r"no model.onnx here; export the run again, with --target onnx"):
        Scorer(folder, "onnx")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    damaged = copy("damaged")
    content = bytearray((damaged / "vocabularies/item.parquet").read_bytes())
    content[100] ^= 1
    (damaged / "vocabularies/item.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"vocabularies/item.parquet: not as it was exported"):
        Scorer(damaged)
    (damaged / "vocabularies/item.parquet").unlink()
    with pytest.raises(UserError, match=r"no export, .*vocabularies/item.parquet is missing"):
        Scorer(damaged)
    for name, text in (
        ("about.json", "[]"),
        ("about.json", "{"),
        ("request.json", '{"format": 2}'),
        ("request.json", ""),
    ):
        other = copy(f"other{len(text)}{name}")
        (other / name).write_text(text, encoding="utf-8")
        if name == "request.json":
            write_about(other)
        with pytest.raises(UserError, match=rf"{name}: "):
            Scorer(other)
    foreign = copy("foreign")
    shutil.copy(foreign / "vocabularies/item.parquet", foreign / "vocabularies/user.parquet")
    write_about(foreign)
    with pytest.raises(UserError, match=r"user.parquet: 21 values, but the model's table has 4 rows"):
        Scorer(foreign)


MARK = "__import__('pathlib').Path('ran').touch()"


class Evil:
    def __reduce__(self) -> Any:
        return exec, (MARK,)


def in_size(program: dict[str, Any]) -> None:
    sizes = next(
        v["sizes"]
        for v in program["graph_module"]["graph"]["tensor_values"].values()
        if "as_expr" in v["sizes"][0]
    )
    sizes[0]["as_expr"]["expr_str"] = f"{MARK} or 2"


def in_size_of_metadata(program: dict[str, Any]) -> None:
    """As the metadata of an operation, which torch doesn't evaluate, are called."""
    program |= json.loads(json.dumps(program).replace('"sequences"', '"metadata"'))
    values = program["graph_module"]["graph"]["tensor_values"]
    values["metadata"]["sizes"][0]["as_expr"]["expr_str"] = f"{MARK} or 2"


def in_guard(program: dict[str, Any]) -> None:
    program["guards_code"].append(f"{MARK} is None")


def in_name(program: dict[str, Any]) -> None:
    text = json.dumps(program).replace('"sequences"', json.dumps(f"sequences={MARK}"))
    program |= json.loads(text)


def as_operator(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.serialization.os.system"


@pytest.mark.parametrize("change", [in_size, in_size_of_metadata, in_guard, in_name, as_operator, None])
def test_no_code_of_a_program_is_run(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any]], None] | None,
) -> None:
    """Of which torch itself runs that in a size, in a guard and in the sample inputs."""
    monkeypatch.chdir(tmp_path)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    evil = io.BytesIO()
    torch.save(Evil(), evil)
    with zipfile.ZipFile(folder / "model.pt2") as source, zipfile.ZipFile(copy / "model.pt2", "w") as target:
        for member in source.infolist():
            content = source.read(member)
            if change and member.filename.endswith("models/model.json"):
                program = json.loads(content)
                change(program)
                content = json.dumps(program).encode()
            if change is None and member.filename.endswith("sample_inputs/model.pt"):
                content = evil.getvalue()
            target.writestr(member.filename, content)
    write_about(copy)
    with pytest.raises(UserError, match=r"may run code when torch loads it"):
        Scorer(copy)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    for content in (b"", b"PK", os.urandom(1000)):
        (tmp_path / "model.pt2").write_bytes(content)
        with pytest.raises(UserError, match=r"model.pt2: not a program of torch.export, or damaged"):
            check_program(tmp_path / "model.pt2")
