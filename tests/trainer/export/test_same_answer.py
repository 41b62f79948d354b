"""One row gets one answer: from the trainer, the commands, `predict.py`, each form of an export and the server."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from cetnet.trainer.cli import main
from cetnet.trainer.errors import UserError
from cetnet.trainer.export.command import export
from cetnet.trainer.export.scorer import Scorer
from cetnet.trainer.export.targets import Target
from cetnet.trainer.processes.launcher import CETNET
from tests.paths import ROOT

SCHEMA: dict[str, Any] = {
    "label": "y",
    "tables": {"device": 4},
    "null_values": ["NA"],
    "features": [
        {"name": "user", "kind": "categorical", "column": "the user's id"},
        {"name": "item", "kind": "categorical"},
        {"name": "place", "kind": "categorical", "hash": 30},
        {"name": "device", "kind": "categorical"},
        {"name": "tags", "kind": "multi_valued"},
        {"name": "history", "kind": "sequence", "table": "item", "max_length": 4},
        {"name": "price", "kind": "dense", "transform": "log1p"},
        {"name": "age", "kind": "dense", "transform": "standardize"},
    ],
}
TYPES = {
    "the user's id": pa.int64(),
    "item": pa.string(),
    "place": pa.string(),
    "device": pa.int32(),
    "tags": pa.list_(pa.string()),
    "history": pa.large_list(pa.large_string()),
    "price": pa.float64(),
    "age": pa.float32(),
}
USERS = [2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1, -(2**63), 0, 17]
ITEMS = [
    "a",
    "A",
    "a ",
    "a\u0301",
    "á",
    "雪",
    "книга",
    "الخبر",
    "\0",
    '"',
    "'",
    "x|y",
    "a,b",
    "\r\n",
    "17",
    "017",
]
OUTPUTS = ["fused", "deep", "din"]
TOLERANCE = 1e-6


def draw(rows: int, seed: int, new: bool) -> pa.Table:
    """Rows; `new` ones also have values that training didn't, over-long lists and numbers far from the others."""
    of = random.Random(seed)
    items = [*ITEMS, *(["9007199254740993", "neu ß", "🦆", "NA", "", None] if new else [])]
    users = [*USERS, *([2**53 + 3, -1, None] if new else [])]
    lengths = [0, 1, 2, 4, *([5, 9] if new else [])]
    columns: dict[str, list[Any]] = {
        "the user's id": [of.choice(users) for _ in range(rows)],
        "item": [of.choice(items) for _ in range(rows)],
        "place": [of.choice([*items, "here"]) for _ in range(rows)],
        "device": [of.choice([0, 1, 2, 3, *([4, -1, None] if new else [])]) for _ in range(rows)],
        "tags": [[of.choice(items) for _ in range(of.choice(lengths))] for _ in range(rows)],
        "history": [[of.choice(items) for _ in range(of.choice(lengths))] for _ in range(rows)],
        "price": [
            of.choice([of.uniform(0, 50), *([None, -1e9, 2.0**60] if new else [])]) for _ in range(rows)
        ],
        "age": [
            of.choice([of.gauss(40, 12), *([None, float("nan"), 99.0] if new else [])]) for _ in range(rows)
        ],
    }
    if new:
        columns["tags"][0] = columns["history"][1] = None
    return pa.table({name: pa.array(columns[name], kind) for name, kind in TYPES.items()})


def command(*arguments: object) -> None:
    """`cetnet ARGUMENTS`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cetnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code, arguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its export in every form, rows of the next day, and what the run predicts of them."""
    folder = tmp_path_factory.mktemp("day")
    day = draw(600, 1, new=False)
    labels = [
        int(user % 3 == 0 or item in ITEMS[:5])
        for user, item in zip(*(day[i].to_pylist() for i in (0, 1)), strict=True)
    ]
    pq.write_table(day.append_column("y", pa.array(labels)), folder / "day.parquet")
    pq.write_table(draw(120, 2, new=True), folder / "next.parquet")
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")
    settings = {
        "run_dir": str(folder / "run"),
        "data": {"path": str(folder / "data"), "batch_size": 32, "lanes": 2},
        "model": {
            "components": {
                "deep": {"kind": "dnn", "embedding_dim": 4, "hidden_units": [4]},
                "din": {"kind": "din", "embedding_dim": 4, "hidden_units": [4], "attention_units": [4]},
            }
        },
        "optimizer": {"sparse": {"lr": 0.5}},
        "training": {"device": "cpu"},
        "evaluation": {"splits": []},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    prepare = ("prepare", "parquet", "--workers", 1, "--raw")
    command(*prepare, folder / "day.parquet", "--schema", folder / "schema.yaml", "--out", folder / "data")
    command("train", folder / "experiment.yaml")
    command(*prepare, folder / "next.parquet", "--like", folder / "run", "--out", folder / "like")
    command("predict", folder / "run", folder / "like", "--out", folder / "predicted.parquet")
    command("export", folder / "run", "--out", folder / "export", "--target", "aoti,onnx")
    return folder


def predicted(path: Path) -> np.ndarray:
    """`[outputs, rows]`."""
    scores = pq.read_table(path)
    return np.stack([scores[name].to_numpy() for name in OUTPUTS])


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    """What the trainer gives for the rows, prepared like its own."""
    return predicted(folder / "predicted.parquet")


def test_answers_tell_rows_apart(folder: Path, expected: np.ndarray) -> None:
    """Else other ids could give the same ones."""
    assert (expected.std(axis=1) > 0.02).all()
    like = pq.read_table(folder / "like/test")
    assert {0} < set(like["user"].to_pylist())
    assert max(map(len, like["history"].to_pylist())) == 4


def test_a_run_whose_values_were_changed_is_not_exported(folder: Path, tmp_path: Path) -> None:
    """Its ids would stand for others, in its examples and in what they are compared with alike."""
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    file = run / "vocabularies/item.parquet"
    vocabulary = pq.read_table(file)
    file.unlink()  # it may be a link to the dataset's
    turned = vocabulary["value"].combine_chunks()[::-1]
    pq.write_table(vocabulary.set_column(0, vocabulary.schema.field(0), turned), file)
    with pytest.raises(
        UserError, match=r"item.parquet: it isn't the vocabulary that the run's schema.yaml has"
    ):
        export(run, tmp_path / "export")
    pq.write_table(vocabulary, file)
    text = (run / "encoding.yaml").read_text(encoding="utf-8")
    (run / "encoding.yaml").write_text(text.replace("keep: recent", "keep: oldest"), encoding="utf-8")
    with pytest.raises(UserError, match=r"encoding.yaml and schema.yaml are not of one dataset"):
        export(run, tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_no_model_names_this_machines_folders(folder: Path) -> None:
    for name in ("model.pt2", "model.onnx"):  # what is in them isn't compressed
        content = (folder / "export" / name).read_bytes()
        assert [
            path for path in (ROOT, folder, Path(torch.__file__).parent) if str(path).encode() in content
        ] == []


def test_predict_on_raw_rows(folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    command("predict", folder / "run", folder / "next.parquet", "--out", tmp_path / "scores.parquet")
    np.testing.assert_allclose(predicted(tmp_path / "scores.parquet"), expected, rtol=0, atol=TOLERANCE)


def test_predict_py_in_a_clean_process(folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    script, scores = folder / "export/predict.py", tmp_path / "scores.parquet"
    stranger = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-I", script, folder / "next.parquet", scores], env=stranger, check=True)
    np.testing.assert_allclose(predicted(scores), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("target", ["pt2", "aoti", "onnx"])
def test_every_form_of_the_model(folder: Path, expected: np.ndarray, target: Target) -> None:
    """All rows at once, and one by one: a batch has no say in a row's answer."""
    scorer, rows = Scorer(folder / "export", target), pq.read_table(folder / "next.parquet")
    assert scorer.outputs == OUTPUTS
    for size in (rows.num_rows, 1):
        parts = [scorer.score(rows.slice(start, size)) for start in range(0, rows.num_rows, size)]
        found = np.concatenate([[part[name] for name in OUTPUTS] for part in parts], axis=1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def tensor(name: str, column: pa.ChunkedArray) -> dict[str, Any]:
    """A raw column as an input of the Open Inference Protocol; lists are filled with null behind their end.

    So that it can't say that a list ends with a missing value.
    """
    values = column.to_pylist()
    if not pa.types.is_nested(column.type):
        datatypes = {pa.string(): "BYTES", pa.int32(): "INT32", pa.int64(): "INT64"}
        numbers = [None if value != value else value for value in values]  # JSON has no NaN
        return {
            "name": name,
            "datatype": datatypes.get(column.type, "FP64"),
            "shape": [len(values)],
            "data": numbers,
        }
    width = max(1, *(len(row or []) for row in values))
    filled = [["" if value is None else value for value in row or []] for row in values]
    data = [[*row, *[None] * (width - len(row))] for row in filled]
    return {"name": name, "datatype": "BYTES", "shape": [len(values), width], "data": data}


def test_the_server(folder: Path, expected: np.ndarray) -> None:
    rows = pq.read_table(folder / "next.parquet")
    inputs = [tensor(name, rows[name]) for name in rows.column_names]
    serve = [*CETNET, "serve", str(folder / "export"), "--port", "0", "--grpc-port", "0", "--target", "pt2"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, encoding="utf-8") as server:
        try:
            assert server.stderr is not None
            log = ""
            while not (ready := re.search(r"ready: (http://\S+/v2)", log)):
                line = server.stderr.readline()
                assert line, log
                log += line
            body = json.dumps({"inputs": inputs}).encode()
            with urlopen(Request(f"{ready[1]}/models/cetnet/infer", body), timeout=120) as answer:
                outputs = {each["name"]: each["data"] for each in json.load(answer)["outputs"]}
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr.read()
    assert server.returncode == 0
    lists = zip(rows["tags"].to_pylist(), rows["history"].to_pylist(), strict=True)
    said = np.array([not any(of_row and of_row[-1] in (None, "") for of_row in both) for both in lists])
    assert said.mean() > 0.7
    found = np.array([outputs[name] for name in OUTPUTS])
    np.testing.assert_allclose(found[:, said], expected[:, said], rtol=0, atol=TOLERANCE)
