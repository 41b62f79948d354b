from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.benchmarks.study.studies import Make


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a study of two variants x two seeds, changed by keywords, into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**changes: Any) -> Path:
        study = {
            "name": "small",
            "base": "base.yaml",
            "nproc": 2,
            "seeds": [1, 2],
            "baseline": "single",
            "variants": {"single": {}, "pair": {"components": ["left", "right"]}},
        } | changes
        (tmp_path / "base.yaml").write_text("skill: 0.5\n")
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        return Path("study.yaml")

    return write
