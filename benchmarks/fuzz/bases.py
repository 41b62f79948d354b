"""What the commands are given before anything is harmed, most of it made by `cetnet` itself."""

import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cetnet.benchmarks.fuzz.clicks import SCHEMA, Dialect, csv_bytes, rows, table, write_yaml

EXPERIMENT: dict[str, Any] = {
    "run_dir": "run",
    "data": {"path": "data", "batch_size": 16, "lanes": 2, "shuffle_rows": 32},
    "model": {
        "components": {"dnn": {"kind": "dnn", "embedding_dim": 4, "hidden_units": [4]}},
        "fusion": {"mode": "confidence_concat"},
        "collaboration": {"kind": "symmetric_kl", "weight": 0.1},
    },
    "optimizer": {"sparse": {"kind": "rowwise_adagrad", "lr": 0.1}, "dense": {"kind": "adam", "lr": 0.001}},
    "training": {"device": "cpu", "log_every": 2, "ne_window_steps": 4, "epochs": 1, "seed": 1},
    "evaluation": {"splits": ["test"]},
    "checkpoint": {"every_steps": 2, "keep": 3},
}
STUDY: dict[str, Any] = {
    "name": "study",
    "base": "train.yaml",
    "schema": "data/schema.yaml",
    "out": "study",
    "nproc": 1,
    "seeds": [1],
    "baseline": "a",
    "embeddings": True,
    "variants": {"a": {}, "b": {"optimizer.dense.lr": 0.01}},
    "paper": {"source": "Nobody (2026)", "numbers": {"a": {"auc": 0.7}, "b": {"auc": 0.71, "ne_gain": -0.1}}},
}
HASHED: dict[str, Any] = {
    "label": "click",
    "group": "session",
    "tables": {"user": 20, "item": 30, "tags": 10, "note": 9},
    "hashed": ["user", "item", "tags", "note"],
    "features": [
        {**feature, "table": feature.get("table", feature["name"])} for feature in SCHEMA["features"][:5]
    ]
    + [{"name": "price", "kind": "dense"}],
}
SOURCES: dict[
    str, tuple[str, list[str]]
] = {  # what `cetnet generate` calls it: the preparation and its options
    "amazon_electronics_x1": ("amazon_electronics", []),
    "amazon_reviews": ("amazon", ["--category", "Electronics"]),
    "avazu": ("avazu", []),
    "avazu_x1": ("avazu", []),
    "avazu_x4": ("avazu", []),
    "criteo": ("criteo", []),
    "criteo_x1": ("criteo", []),
    "criteo_x4": ("criteo", []),
    "kuaivideo": ("kuaivideo", []),
    "kuaivideo_x1": ("kuaivideo", []),
    "movielens_x1": ("movielens", []),
    "taobao_ad": ("taobao_ad", []),
    "taobao_ad_x1": ("taobao_ad", []),
}


def write_bases(folder: Path) -> None:
    """The files that `cetnet` doesn't make."""
    rng = random.Random(1)
    clicks = rows(rng)
    write_yaml(folder / "raw.yaml", SCHEMA)
    (folder / "clicks.csv").write_bytes(csv_bytes(clicks, Dialect()))
    pq.write_table(table(clicks), folder / "clicks.parquet", row_group_size=30)
    write_yaml(folder / "train.yaml", EXPERIMENT)
    write_yaml(folder / "study.yaml", STUDY)
    direct = [
        {
            **click,
            "history": click["history"][:5],
            "price": click["price"] or 0.5,
            "session": click["ts"] // 300,
        }
        for click in rows(rng)
    ]
    for split, (first, last) in {"train": (0, 50), "validation": (50, 65), "test": (65, 80)}.items():
        (folder / "hashed" / split).mkdir(parents=True)
        pq.write_table(
            table(direct[first:last]), folder / "hashed" / split / "part-0.parquet", row_group_size=20
        )
    write_yaml(folder / "hashed/schema.yaml", HASHED)


def making(needed: Collection[str]) -> list[list[str]]:
    """The commands that make these of the others (`data`, `run`, `study`, `sources`), in their order."""
    raw = ["--raw", "clicks.csv", "--schema", "raw.yaml", "--out", "data", "--workers", "1"]
    sources = [["generate", name, "--rows", "60", "--out", f"sources/{name}"] for name in SOURCES]
    commands = {
        "data": [["prepare", "csv", *raw]],
        "run": [["train", "train.yaml", "training.max_steps=100"]],
        "study": [["study", "study.yaml"]],
        "sources": sources,
    }
    return [command for name, each in commands.items() if name in needed for command in each]
