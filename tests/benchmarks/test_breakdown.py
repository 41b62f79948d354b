"""The breakdown of a step: every microsecond belongs to one phase, and products are counted once."""

import gzip
import json
from pathlib import Path

import pytest
from torch import nn

from cetnet.benchmarks.speed.breakdown.__main__ import main
from cetnet.benchmarks.speed.breakdown.phases import phase_of
from cetnet.models.component import input_shape
from cetnet.models.dnn import DNN
from cetnet.trainer.data.dataset import load_schema
from cetnet.trainer.errors import UserError
from tests.data import write_dataset

CONFIG = """
data: {{path: {data}, batch_size: 64, lanes: 4}}
model: {{components: {{dnn: {{kind: dnn, embedding_dim: 4, hidden_units: [16]}}}}}}
training: {{device: cpu}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("breakdown")
    write_dataset(folder / "data", {"train": 640})
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(data=folder / "data"))
    return path


def test_phases_add_up_to_the_step(config: Path) -> None:
    out = config.parent / "out"
    main(config, out=out, steps=4, warmup=3)
    result = json.loads((out / "breakdown.json").read_text())
    assert {"wait for data", "lookup", "tables' update", "dense forward", "optimizer", "metrics"} <= set(
        result["milliseconds"]
    )
    trace = json.loads(gzip.decompress((out / "trace.json.gz").read_bytes()))
    steps = [e["dur"] for e in trace["traceEvents"] if e.get("name") == "## step ##" and e["ph"] == "X"]
    assert len(steps) == result["steps"] == 4
    total = sum(phase["host"] for phase in result["milliseconds"].values())
    assert total == pytest.approx(sum(steps) / 4 / 1000, rel=0.02)
    assert (out / "flame.svg").stat().st_size > 1000


def test_products_are_those_of_the_layers(config: Path) -> None:
    """Forward, and the gradients of the input and of the weight: three products of each layer."""
    result = json.loads((config.parent / "out/breakdown.json").read_text())
    schema = load_schema(config.parent / "data")
    component = DNN(
        input_shape(schema, DNN, DNN.Config(embedding_dim=4)), DNN.Config(embedding_dim=4, hidden_units=(16,))
    )
    weights = sum(layer.weight.numel() for layer in component.modules() if isinstance(layer, nn.Linear))
    assert result["dense_gflop"] * 1e9 == 3 * 2 * 64 * weights


def test_too_few_steps(config: Path) -> None:
    with pytest.raises(UserError, match=r"has 10 steps of 64 rows, --warmup 10 takes them all"):
        main(config, out=config.parent / "none", steps=4, warmup=10)


def test_phases_are_found_by_name() -> None:
    assert phase_of("## forward 12 ##", "other") == "dense forward"
    assert phase_of("fbgemm::split_embedding_backward_codegen_rowwise_adagrad_cpu", "dense backward") == (
        "tables' update"
    )
    assert phase_of("aten::mm", "dense backward") == "dense backward"
