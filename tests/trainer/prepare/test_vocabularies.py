"""What the ids of a dataset stand for, and that a run scores no ids that stand for other values."""

import random
from pathlib import Path

import pytest
import yaml

from cetnet.models.schema import Schema
from cetnet.trainer.check_settings import check_scored
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from cetnet.trainer.yaml_files import save_yaml
from tests.processes import run_settings

FEATURES = [
    {"name": "item", "kind": "categorical"},
    {"name": "color", "kind": "categorical"},
    {"name": "price", "kind": "dense"},
]


def prepare(folder: Path, colors: str, shuffled: bool = False) -> Schema:
    """Prepare rows in which 30 items and the colors, a letter each, take turns."""
    folder.mkdir()
    rows = [f"{i % 2},{i},item{i % 30},{colors[i % len(colors)]},{i}" for i in range(600)]
    if shuffled:
        random.Random(1).shuffle(rows)
    (folder / "raw.csv").write_text("\n".join(["click,time,item,color,price", *rows, ""]), encoding="utf-8")
    raw = {"label": "click", "timestamp": "time", "features": FEATURES}
    (folder / "raw.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return prepare_tabular(
        "csv", folder / "raw.csv", folder / "data", folder / "raw.yaml", "time:0.8,0.1,0.1", workers=1
    )


def test_data_of_another_vocabulary_is_not_scored(tmp_path: Path) -> None:
    schema = prepare(tmp_path / "first", "abc")
    same, other = prepare(tmp_path / "same", "cab", shuffled=True), prepare(tmp_path / "other", "abd")
    assert same == schema
    assert other.tables == schema.tables
    assert schema.vocabularies
    assert other.vocabularies
    assert {t for t, v in schema.vocabularies.items() if other.vocabularies[t] != v} == {"color"}

    run = tmp_path / "run"
    run.mkdir()
    settings = run_settings(tmp_path / "first/data", run)
    (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    save_yaml(run / "schema.yaml", schema)
    assert check_scored(run, tmp_path / "same/data", "test").num_rows == 60
    with pytest.raises(UserError, match="ids of table 'color' stand for other values"):
        check_scored(run, tmp_path / "other/data", "test")
    # Of a run of earlier versions nothing is known, so its data may be other than what is scored.
    unknown = {"vocabularies": None, "encoding": None}
    save_yaml(run / "schema.yaml", schema.model_copy(update=unknown))
    with pytest.raises(
        UserError, match="of the run doesn't say which values the ids of table 'color' stand for"
    ):
        check_scored(run, tmp_path / "other/data", "test")
    save_yaml(tmp_path / "other/data/schema.yaml", other.model_copy(update=unknown))
    assert check_scored(run, tmp_path / "other/data", "test").num_rows == 60


def test_the_encoding_is_read_as_it_was_written(tmp_path: Path) -> None:
    features = (
        RawFeature(name="n", kind="sequence", max_length=3, keep="oldest", column="raw n"),
        RawFeature(name="x", kind="dense", transform="standardize"),
    )
    raw = RawSchema(label="y", features=features, quote=None, delimiter="\t", null_values=("no", "\\N", ""))
    encoding = RawEncoding(raw=raw, moments={"x": (1 / 3, 1e-300)}, lowest=-0.1)
    encoding.save(tmp_path)
    assert RawEncoding.load(tmp_path) == encoding

    names = raw.model_copy(update={"label": "z", "delimiter": ";", "min_count": 9})
    assert encoding.model_copy(update={"raw": names}).digest == encoding.digest
    for update in ({"null_values": ()}, {"separator": ","}, {"whole_floats": "text"}):
        assert encoding.model_copy(update={"raw": raw.model_copy(update=update)}).digest != encoding.digest
    assert encoding.model_copy(update={"lowest": None}).digest != encoding.digest
