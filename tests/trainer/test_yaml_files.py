"""What is said of YAML files, whatever is wrong with them: one line that names file and key as they are written."""

import os
from pathlib import Path
from typing import Any

import pytest

from cetnet.benchmarks.study.definition import Study
from cetnet.models.schema import Schema
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.yaml_files import checked, read_yaml

TEXT = "label: cliqué\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_how_a_file_is_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(TEXT.encode(encoding))
    assert read_yaml(file) == {"label": "cliqué"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nlabel: cliqu\xe9\n", "line 2: byte 0xe9 is not UTF-8; save the file in UTF-8"),
        (b"\xef\xbb\xbflabel: cliqu\xe9", "line 1: byte 0xe9 is not UTF-8"),
        (TEXT.encode("utf-16-be"), "byte 0xe9 is not UTF-8"),
        (b"\xff\xfe\n", "is not UTF-16; save the file in UTF-8"),
        (b"a: [", "line 1, column 5"),
        (b"a: \x1b[31mred", "special characters are not allowed"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_yaml(file)
    assert str(error.value).startswith(f"{file}: cannot be read as YAML: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_is_no_yaml_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)$"):
        read_yaml(tmp_path)


ITEM = {"name": "item", "kind": "categorical"}
RUN = {"data": {"path": "data"}, "model": {"components": {"a": {"kind": "dnn"}}}}
STUDY = {"name": "s", "base": "b", "nproc": 1, "seeds": [1], "baseline": "a", "variants": {"a": {}}}
SCHEMA = {"label": "click", "tables": {"item": 5}, "features": [ITEM]}
TWO = {"a": {"kind": "dnn"}, "b": {"kind": "dnn", "copies": 2, "embedding_dim": "x"}}


@pytest.mark.parametrize(
    ("model", "content", "message"),
    [
        (RunConfig, {**RUN, "trainin": {}}, "trainin: unknown key; did you mean training?"),
        (RunConfig, {**RUN, "training": {"sed": 1}}, "training.sed: unknown key; did you mean seed?"),
        (
            RunConfig,
            {**RUN, "checkpoint": {"x": 1}},
            "checkpoint.x: unknown key; keys here: path, every_steps, ",
        ),
        (
            RunConfig,
            {**RUN, "model": {"components": TWO}},
            "model.components.b.embedding_dim: Input should be",
        ),
        (RunConfig, {**RUN, "model": {"components": {"a": 3}}}, "model.components.a: a mapping of keys to"),
        (RunConfig, {**RUN, "model": {"components": {"a": {}}}}, "model.components.a: no kind is given"),
        (
            RunConfig,
            RUN | {"evaluation": {"splits": ["test", "a/b"]}},
            "evaluation.splits[1]: 'a/b' can't be a",
        ),
        (RunConfig, RUN | {"data": {"path": "d", "split": ".."}}, "data.split: '..' can't be a split's name"),
        (RunConfig, {"data": {}, "model": RUN["model"]}, "data.path: is missing"),
        (
            RunConfig,
            RUN | {"model": {**RUN["model"], "collaboration": {"kind": "x"}}},
            "model.collaboration: kind 'x' is none of 'none', 'symmetric_kl', ",
        ),
        (
            RunConfig,
            RUN | {"model": {**RUN["model"], "collaboration": {"wight": 1}}},
            "model.collaboration.wight: unknown key; did you mean weight?",
        ),
        (
            Schema,
            {**SCHEMA, "features": [ITEM, {**ITEM, "kind": "x"}]},
            "features[1].kind (of item): Input should",
        ),
        (
            Schema,
            {**SCHEMA, "features": [{**ITEM, "tabel": "x"}]},
            "features[0].tabel (of item): unknown key; did",
        ),
        (Schema, {**SCHEMA, "features": [{"name": "x"}]}, "features[0].kind (of x): is missing"),
        (Schema, {**SCHEMA, "tables": {"a.b": 1}}, "tables.a.b: 'a.b' can't be a table's name, which"),
        (
            RawSchema,
            {"label": "x", "features": [{"name": "a b"}]},
            "features[0].name: 'a b' can't be a feature's",
        ),
        (Study, {**STUDY, "sed": [1]}, "sed: unknown key; did you mean seeds?"),
        (Study, {**STUDY, "schem": "x"}, "schem: unknown key; did you mean schema?"),
        (Study, {**STUDY, "variants": {"a": {}, "b/c": {}}}, "variants.b/c: 'b/c' can't be a folder of runs"),
        (
            Study,
            {**STUDY, "variants": {"a": {}, "report.html": {}}},
            "variants.report.html: 'report.html' can't be",
        ),
        (Study, {**STUDY, "baseline": 3}, "baseline: Input should be a valid string (got 3)"),
    ],
)
def test_a_mistake_is_named_as_it_is_written(model: Any, content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        checked(content, model, "x.yaml")
    assert str(error.value).startswith(f"x.yaml: {message}")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "pipe"])
def test_what_may_never_end(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=f"{path} is (no regular file|a named pipe); give"):
        read_yaml(Path(path))
