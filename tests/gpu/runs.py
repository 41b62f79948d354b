"""Small runs, and data of which not all tables fit into a GPU whose memory is said to be 1 MiB."""

from pathlib import Path
from typing import Any

from cetnet.trainer.yaml_files import save_yaml
from tests.data import make_schema, make_table, write_split
from tests.processes import run_settings

ROWS = 640  # ten steps
_TABLE_ROWS = 4000
HOST_MEMORY = {"host_memory": True, "cluster": {"hbm_gb": 0.001}}


def settings(data: Path, run_dir: Path, device: str, **sections: Any) -> dict[str, Any]:
    """Of a small CETNet that is not evaluated; `sections` replace whole sections, but add to `training`."""
    run = run_settings(data, run_dir, **{"evaluation": {"splits": []}} | sections)
    run["training"] = {"log_every": 1, "seed": 7, "device": device} | sections.get("training", {})
    return run


def write_large(folder: Path) -> Path:
    """Write the splits `train` and `test` with tables of 4,000 rows."""
    small = make_schema()
    schema = small.model_copy(update={"tables": dict.fromkeys(small.tables, _TABLE_ROWS)})
    write_split(folder / "train", make_table(schema, ROWS, 0), [[ROWS // 2, ROWS // 2]])
    write_split(folder / "test", make_table(schema, 200, 1), [[200]])
    save_yaml(folder / "schema.yaml", schema)
    return folder
