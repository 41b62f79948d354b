"""What ends a study before its first run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cetnet.benchmarks.study.check import check_study
from cetnet.trainer.errors import UserError
from tests.data import write_dataset

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a study of two variants, the second one changed by `overrides`, into the working directory."""
    monkeypatch.chdir(tmp_path)
    write_dataset(Path("data"), {"train": 60, "validation": 60, "test": 60})
    base = {
        "data": {"path": "data", "batch_size": 64},
        "model": {"components": {"single": {"kind": "dcnv2", "embedding_dim": 4}}},
    }
    Path("base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")

    def write(overrides: dict[str, Any] | None = None, **changes: Any) -> Path:
        variants: dict[str, Any] = {"one": {}, "two": overrides or {}}
        study = {"name": "small", "base": "base.yaml", "nproc": 2, "seeds": [1, 2], "baseline": "one"}
        study |= {"variants": variants} | changes
        Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
        return Path("study.yaml")

    return write


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        (
            {"evaluation.splits": ["validation"]},
            {},
            "variant 'two': the study reports split 'test', which evaluation.splits (validation) lacks",
        ),
        ({}, {"split": "tests"}, "variant 'one': the study reports split 'tests'"),
        ({"training.sede": 1}, {}, "variant 'two': training.sede: unknown key; did you mean seed?"),
        ({"data.path": "elsewhere"}, {}, "variant 'two': elsewhere/schema.yaml: not found"),
        ({"data.lanes": 3, "data.batch_size": 33}, {}, "variant 'two': data.lanes=3"),
        ({}, {"out": "base.yaml"}, "base.yaml is not a directory one may write to; choose another out"),
        ({}, {"out": "taken"}, "taken/report.html is a directory"),
    ],
)
def test_what_is_found(
    overrides: dict[str, Any], changes: dict[str, Any], message: str, write: Write
) -> None:
    Path("taken/report.html").mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape(message)):
        check_study(write(overrides, **changes))
    assert not Path("runs").exists()


def test_a_split_of_one_class_is_told(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    check_study(write())
    assert capfd.readouterr().err == ""
    for file in Path("data/test").iterdir():
        table = pq.read_table(file)
        label = pa.array([1] * len(table), pa.int8())
        pq.write_table(table.set_column(table.column_names.index("click"), "click", label), file)
    check_study(write())
    assert capfd.readouterr().err.count("WARNING: data/test: every row has the label 1") == 1
