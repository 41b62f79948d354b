"""A smoke run, end to end: real training of a small study on random rows."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cetnet.benchmarks.study.smoke import smoke_study
from cetnet.trainer.console import PlainConsole
from cetnet.trainer.errors import UserError

SCHEMA = {
    "label": "click",
    "group": "user",
    "tables": {"item": 1_000_000, "user": 3000},
    "features": [
        {"name": "item", "kind": "categorical"},
        {"name": "user_id", "kind": "categorical", "table": "user"},
        {"name": "history", "kind": "sequence", "table": "item", "max_length": 5, "mean_length": 3},
        {"name": "price", "kind": "dense"},
    ],
}
COMPONENT = {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]}
BASE = {
    "data": {"path": "data/absent", "batch_size": 4096},
    "model": {"components": {"only": COMPONENT}},
    "training": {"epochs": 100},
    "evaluation": {"every_epoch": True, "early_stopping": {"monitor": "auc/fused"}},
}


def write_study(folder: Path, **changes: Any) -> Path:
    study = {
        "name": "small",
        "base": "base.yaml",
        "schema": "schema.yaml",
        "nproc": 2,
        "seeds": [3, 4],
        "baseline": "single",
        "paper": {"source": "Somebody (2024)", "numbers": {"single": {"auc": 0.7}, "pair": {"auc": 0.8}}},
        "variants": {"single": {}, "pair": {"model.components": {"only": COMPONENT | {"copies": 2}}}},
    } | changes
    for name, content in (("schema", SCHEMA), ("base", BASE), ("study", study)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "study.yaml"


def test_every_variant_is_trained_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    teaching = {"taught": {"training.teacher": "variant:pair"}}
    pair = {"model.components": {"only": COMPONENT | {"copies": 2}}}
    path = write_study(tmp_path, variants={**teaching, "single": {}, "pair": pair})
    for _ in range(2):  # the second replaces the first
        shown = io.StringIO()
        smoke_study(path, PlainConsole(file=shown, width=100))
    assert "3/3 taught" in shown.getvalue()
    folder = Path("runs/smoke/small")
    report = (folder / "report.md").read_text()
    assert report.startswith("# SMOKE RUN of small\n\n**A smoke run: 160 random rows, 2 steps, one seed.")
    assert "0.8000" in report
    assert "+10.000" in report  # the paper's gain
    for variant in ("taught", "single", "pair"):
        config = yaml.safe_load((folder / variant / "seed3" / "config.yaml").read_text())
        assert config["model"]["components"]
        assert config["evaluation"]["early_stopping"]
        assert not (folder / variant / "seed3" / "checkpoints").exists()
    tables = yaml.safe_load((folder / "_data" / "schema.yaml").read_text())["tables"]
    assert max(tables.values()) == 500


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape("study.yaml: --smoke needs `schema`")):
        smoke_study(write_study(tmp_path, schema=None))
    variants = {"single": {}, "bad": {"model.fusion.mode": "sum"}}
    with pytest.raises(UserError, match=r"bad: .*base\.yaml: model\.fusion\.mode"):
        smoke_study(write_study(tmp_path, variants=variants, paper=None), PlainConsole(file=io.StringIO()))
