"""The datasets of the throughput benchmark: random rows in our format, made once.

Ids are long-tailed as those of click logs, P(rank) about proportional to 1 / (rank + 1) over the whole of each table,
and frequent ones are spread over it (`sources/random.py`). The uniform numbers that ids are made of are the
same for every size of the tables: larger ones have the same rows, their ids farther apart.
"""

from pathlib import Path

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.prepare.sources.random import prepare_random
from cetnet.trainer.yaml_files import save_yaml

ROOT = Path("data/throughput")
NUM_IDS, NUM_DENSE = 26, 13


def clicks(table_rows: int) -> Schema:
    """26 ids and 13 numbers, as in Criteo's logs; every table has this many rows."""
    ids = [f"C{i}" for i in range(1, NUM_IDS + 1)]
    return Schema(
        label="label",
        tables=dict.fromkeys(ids, table_rows),
        features=(
            *(Feature(name=name, kind="categorical") for name in ids),
            *(Feature(name=f"I{i}", kind="dense") for i in range(1, NUM_DENSE + 1)),
        ),
    )


def events() -> Schema:
    """A user, an item and its category, and the last 50 events, each an item and its category."""
    sequence = {"kind": "sequence", "max_length": 50, "mean_length": 50}
    return Schema(
        label="label",
        tables={"user": 100_001, "item": 100_001, "category": 1001},
        features=(
            Feature(name="user", kind="categorical"),
            Feature(name="item", kind="categorical"),
            Feature(name="category", kind="categorical"),
            Feature.model_validate(sequence | {"name": "items", "table": "item"}),
            Feature.model_validate(sequence | {"name": "categories", "table": "category"}),
        ),
    )


def demo() -> Schema:
    """The features of `make demo`."""
    return read_schema(Path(__file__).parents[1] / "studies/schemas/demo.yaml")


# By name: the schema, and rows in all splits; 80 % are for training.
DATASETS = {
    "clicks-100k": (clicks(3847), 2_000_000),
    "clicks-2m": (clicks(83_077), 2_000_000),
    "clicks-22m": (clicks(830_769), 2_000_000),
    "clicks-100m": (clicks(3_846_154), 2_000_000),
    "events": (events(), 500_000),
    "demo": (demo(), 1_000_000),
}


def dataset(name: str) -> Path:
    """Folder of a dataset of `DATASETS`, which is made if it isn't there: whole, by a rename at the end."""
    folder = ROOT / name
    if not folder.exists():
        schema, rows = DATASETS[name]
        schemas = ROOT / "schemas"
        schemas.mkdir(parents=True, exist_ok=True)
        save_yaml(schemas / f"{name}.yaml", schema)
        prepare_random(schemas / f"{name}.yaml", rows, folder)
    return folder
