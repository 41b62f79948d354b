"""Where the project's own files are."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
STUDIES = ROOT / "benchmarks" / "studies"
SCHEMAS = STUDIES / "schemas"
SHARED_DATA = ROOT.parent / "shared" / "data"
