"""Stands in for `cetnet train`: takes its arguments, learns nothing, leaves a run folder of the same form.

Beside the base configuration it appends its arguments to calls.txt, a line of JSON each. Keys of its own:
`skill` (share of the truth in a prediction's logit), `components` (names), `fail`, `truth` (whether the true
probability is written) and `data_seed`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROWS = 4000


def train(arguments: list[str]) -> None:
    assert arguments[0] == "train"
    sys.exit(main(arguments[1:]))


def main(arguments: list[str]) -> int:
    base, rest = Path(arguments[0]), arguments[1:]
    with (base.parent / "calls.txt").open("a") as calls:
        calls.write(json.dumps(rest) + "\n")
    config = yaml.safe_load(base.read_text(encoding="utf-8"))
    config |= {
        key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in rest if "=" in item)
    }
    folder = Path(config["run_dir"])
    if folder.exists() != ("--resume" in rest):
        print(f"{folder}: --resume is for a folder that exists", file=sys.stderr)
        return 2
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if config.get("fail"):
        return 3
    write_run(
        folder,
        seed=config["training.seed"],
        skill=config["skill"],
        components=config.get("components", ["solo"]),
        truth=config.get("truth", False),
        data_seed=config.get("data_seed", 0),
    )
    return 0


def write_run(
    folder: Path, *, seed: int, skill: float, components: list[str], truth: bool, data_seed: int
) -> None:
    data = np.random.default_rng(data_seed)
    noise = np.random.default_rng(seed)
    logit = data.normal(-1, 1.2, ROWS)
    probability = sigmoid(logit)
    label = (data.random(ROWS) < probability).astype(np.float64)
    columns = {
        "row": np.arange(ROWS),
        "label": label.astype(np.float32),
        "weight": np.ones(ROWS, np.float32),
        "group": np.sort(data.integers(0, 400, ROWS)),
    }
    if truth:
        columns["true_probability"] = probability.astype(np.float32)
    # An average of models with errors of their own has less of them.
    models = {name: skill * (logit + noise.normal(0, 0.7, ROWS)) + (skill - 1) for name in components}
    fused = np.mean(list(models.values()), axis=0)
    models = {"fused": fused, **models}
    columns |= {name: sigmoid(values).astype(np.float32) for name, values in models.items()}
    pq.write_table(pa.table(columns), folder / "predictions" / "test.parquet")

    scores: dict[str, float] = {}
    for name in models:
        log_loss = cross_entropy(label, columns[name])
        ne = log_loss / cross_entropy(label, np.full(ROWS, label.mean()))
        scores |= {f"ne/{name}": ne, f"auc/{name}": 0.75 + seed / 1000, f"logloss/{name}": log_loss}
        scores |= {f"gauc/{name}": 0.7, f"calibration/{name}": 1.0}
    loss, entropy = 0.0, -0.3 * np.log(0.3) - 0.7 * np.log(0.7)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 101):
            rows = step * 40_960
            record: dict[str, object] = {"kind": "train", "step": step, "rows": rows, "epoch": 1}
            window = scores["ne/fused"] + 0.3 * np.exp(-step / 15) + noise.normal(0, 0.003)
            loss += 40_960 * entropy * window
            record["progressive"] = {"weight": rows, "positive": 0.3 * rows, "loss": {"fused": loss}}
            record["ne/window/fused"] = window
            record["ne/lifetime/fused"] = scores["ne/fused"] + 4.5 / step * (1 - np.exp(-step / 15))
            file.write(json.dumps(record) + "\n")
        file.write(json.dumps({"kind": "eval", "split": "validation", "step": 100, "ne/fused": 0.9}) + "\n")
    result = {
        "steps": 100,
        "rows": 4_096_000,
        "seconds": 100.0,
        "rows_per_second": 40_960.0 + seed,
        "parameters": {"tables": 12_345_678, "dense": 234_567 * len(components)},
        "multiply_adds": 200_000.0 * len(components),
        "train": {"ne/window/fused": window},
        "splits": {"test": {"rows": ROWS, **scores}},
    }
    environment = {
        "time": f"2026-01-0{seed % 9 + 1}T10:00:00+00:00",
        "host": "here",
        "machine": "x86_64, 2 cores",
        "python": "3.11",
        "versions": {"torch": "2.13.0"},
        "commit": "abc",
        "world_size": 1,
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "result.json").write_text(json.dumps(result))


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def cross_entropy(label: np.ndarray, probability: np.ndarray) -> float:
    probability = probability.astype(np.float64)
    return float(-(label * np.log(probability) + (1 - label) * np.log1p(-probability)).mean())
