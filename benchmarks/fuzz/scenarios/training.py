"""Trainings from harmed files, and what is done with a run whose folder is harmed."""

import shutil

import pyarrow.parquet as pq

from cetnet.benchmarks.fuzz.case import Case
from cetnet.benchmarks.fuzz.checks import predicted, trained
from cetnet.benchmarks.fuzz.clicks import SPLITS
from cetnet.benchmarks.fuzz.harm.columns import harm_columns, writer_options
from cetnet.benchmarks.fuzz.harm.files import ANY_FILE


def train_config(case: Case) -> None:
    """The experiment file harmed."""
    case.take("data", "train.yaml")
    if case.rng.random() < 0.8:
        case.harm_yaml(case.folder / "train.yaml")
    case.inputs, case.outputs = ["train.yaml", "data"], ["run"]
    case.arguments = ["train", "train.yaml", "training.max_steps=2"]


def train_schema(case: Case) -> None:
    """The dataset's schema.yaml harmed."""
    data = case.rng.choice(["data", "hashed"])
    case.take(data, "train.yaml")
    case.harm_yaml(case.folder / data / "schema.yaml")
    case.inputs, case.outputs = ["train.yaml", data], ["run"]
    case.arguments = ["train", "train.yaml", f"data.path={data}", "training.max_steps=2"]


def train_data(case: Case) -> None:
    """The dataset's Parquet files harmed: columns of other types, values, bytes."""
    rng = case.rng
    data = rng.choice(["data", "hashed"])
    case.take(data, "train.yaml")
    files = sorted((case.folder / data).glob("*/*.parquet"))
    path = rng.choice(files)
    columns = pq.ParquetFile(path).read()
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        columns, what = harm_columns(rng, columns)
        case.done.append(f"{path.parent.name}: {what}")
    pq.write_table(columns, path, row_group_size=rng.choice([7, 30, 1000]), **writer_options(rng))
    if rng.random() < 0.4:
        case.harm_file(path, ANY_FILE)
    policy = rng.choice(["fail", "quarantine"])
    case.inputs, case.outputs = ["train.yaml", data], ["run"]
    case.arguments = ["train", "train.yaml", f"data.path={data}", f"data.bad_rows={policy}"]
    case.checks.append(lambda: trained(case.at("run"), case.at(data) / "train"))


def harm_run(case: Case, run: str) -> None:
    """Harm a file of a run folder, or take it away."""
    files = sorted(path for path in (case.folder / run).rglob("*") if path.is_file())
    path = case.rng.choice(files)
    if case.rng.random() < 0.15:
        path.unlink()
        case.done.append(f"{path.relative_to(case.folder)}: missing")
    elif path.suffix == ".json":
        case.harm_json(path)
    elif path.suffix == ".yaml":
        case.harm_yaml(path)
    else:
        case.harm_file(path, ANY_FILE)


def resume(case: Case) -> None:
    """A run that was cut short, its folder harmed."""
    case.take("data", "train.yaml", "run")
    (case.folder / "run/result.json").unlink()
    if case.rng.random() < 0.7:
        shutil.rmtree(max((case.folder / "run/checkpoints").glob("step-*")))
        case.done.append("the last checkpoint is missing")
    if case.rng.random() < 0.7:
        harm_run(case, "run")
    case.inputs, case.outputs = ["train.yaml", "data", "run"], ["run"]
    case.arguments = ["train", "train.yaml", "training.max_steps=100", "--resume"]


def evaluate(case: Case) -> None:
    """A run, its folder or its dataset harmed, scored."""
    case.take("data", "run")
    if case.rng.random() < 0.7:
        harm_run(case, case.rng.choice(["run", "run", "data"]))
    split = case.rng.choice(SPLITS)
    case.inputs, case.outputs = ["run", "data"], []
    case.arguments = ["evaluate", "run", "data", "--split", split]


def predict(case: Case) -> None:
    """A run, its folder or its dataset harmed, whose predictions are written."""
    case.take("data", "run")
    if case.rng.random() < 0.7:
        harm_run(case, case.rng.choice(["run", "run", "data"]))
    split = case.rng.choice(SPLITS)
    case.inputs, case.outputs = ["run", "data"], ["scores.parquet"]
    case.arguments = ["predict", "run", "data", "--split", split, "--out", "scores.parquet"]
    case.checks.append(lambda: predicted(case.at("data") / split, case.at("scores.parquet")))
    case.made = ["scores.parquet"]
