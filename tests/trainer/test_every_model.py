"""Every component and every way of combining them, trained in two processes with sharded tables."""

import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper

from cetnet.models.registry import COMPONENTS
from cetnet.trainer.processes.distributed import Processes
from tests.data import write_dataset
from tests.processes import run_processes, run_settings, train_all

SETTINGS: dict[str, dict[str, Any]] = {
    "interformer": {"num_heads": 2, "num_layers": 1},
    "wukong": {"num_fmb_tokens": 2, "num_lcb_tokens": 2, "rank": 2, "fmb_hidden_units": [8], "num_layers": 1},
    "finalmlp": {
        "hidden_units2": [4],
        "selection_units": [4],
        "context1": ["user"],
        "context2": ["price", "tags"],
    },
    "dien": {"auxiliary_weight": 1.0, "auxiliary_units": [4], "attention_units": [4]},
    "din": {"attention_units": [4]},
    "dmin": {"attention_units": [4]},
    "dcnv2": {"cross": "mixture", "rank": 2},
}


def component(kind: str) -> dict[str, Any]:
    units = {} if kind == "fm" else {"hidden_units": [8]}
    return {"kind": kind, "embedding_dim": 4, "embedding_std": 0.05, **units, **SETTINGS.get(kind, {})}


DNN, DHEN, INTERFORMER = component("dnn"), component("dhen"), component("interformer")
PAIR = {"interformer": INTERFORMER, "dhen": DHEN}
ONLY_FUSED = {"component_weight": 0, "collaboration": {"kind": "none"}}
MODELS: dict[str, dict[str, Any]] = {
    "every_component": {"components": {kind: component(kind) for kind in COMPONENTS}},
    "other_settings": {
        "components": {
            "dcnv2": {**component("dcnv2"), "cross": "low_rank", "structure": "stacked_parallel"},
            "dhen": {
                **DHEN,
                "interactions": ["attention", "linear", "convolution"],
                "ensemble": "weighted_sum",
                "dense": "field",
                "readout": "tokens",
            },
            "din": {**component("din"), "softmax": False, "attention_activation": "prelu"},
            "dien": {**component("dien"), "auxiliary_weight": 0, "attention": "bilinear", "batch_norm": True},
            "dmin": {**component("dmin"), "refiner": False, "position_dim": 0, "num_heads": 1},
            "finalmlp": {**component("finalmlp"), "context1": [], "context2": []},
            "masknet": {**component("masknet"), "structure": "serial"},
            "xdeepfm": {**component("xdeepfm"), "hidden_units": []},
            "interformer": {
                **INTERFORMER,
                "pffn": "hypernetwork",
                "pma_keys": "body",
                "share_cross_arch": True,
                "sequence_join": "separate",
            },
        },
        "fusion": {"mode": "gate_concat"},
    },
    "shared_tables": {"components": PAIR, "shared_tables": True},
    "single_embedding_concat": {
        "components": PAIR,
        "shared_tables": True,
        "fusion": {"mode": "concat"},
        **ONLY_FUSED,
    },
    "without_gradient_stop": {"components": PAIR, "fusion": {"stop_gradient": False}},
    "multi_embedding": {
        "components": {"dnn": {**DNN, "copies": 2}},
        "fusion": {"mode": "mean", "hidden_units": [4], "batch_norm": True},
        **ONLY_FUSED,
    },
    "multi_embedding_finalmlp": {
        "components": {
            "finalmlp": {
                **component("finalmlp"),
                "hidden_units2": [8],
                "feature_selection": False,
                "copies": 2,
            }
        },
        "fusion": {"mode": "mean", "head": "bilinear"},
        **ONLY_FUSED,
    },
    "gate_and_distillation": {
        "components": PAIR,
        "fusion": {"mode": "gate_sum", "temperature": 2},
        "collaboration": {"kind": "distillation", "temperature": 3},
    },
    "mutual_learning": {
        "components": {"dnn": {**DNN, "copies": 3}},
        "fusion": {"mode": "confidence_sum"},
        "collaboration": {"kind": "mutual_learning"},
    },
}


def train_all_strictly(processes: Processes, settings: list[dict[str, Any]]) -> None:
    """Train with a DDP that fails in the second step if a parameter got no gradient in the first.

    TorchRec's own wrapper fixes the graph after the first step and so lets such a parameter pass.
    """
    loose = DefaultDataParallelWrapper.__init__
    DefaultDataParallelWrapper.__init__ = partialmethod(loose, static_graph=False)  # type: ignore[method-assign,assignment]
    train_all(processes, settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs")
    write_dataset(data, {"train": 320, "test": 100})
    run_processes(
        train_all_strictly, 2, [run_settings(data, out / name, model=model) for name, model in MODELS.items()]
    )
    return out


@pytest.mark.parametrize("name", MODELS)
def test_trains_and_is_evaluated(runs: Path, name: str) -> None:
    metrics = json.loads((runs / name / "result.json").read_text())["splits"]["test"]
    learned = MODELS[name].get("component_weight", 1) > 0
    outputs = {key.removeprefix("ne/") for key in metrics if key.startswith("ne/")}
    expected = {"fused"}
    if learned:
        for key, settings in MODELS[name]["components"].items():
            copies = settings.get("copies")
            expected |= {f"{key}_{i + 1}" for i in range(copies)} if copies else {key}
    assert outputs == expected
    assert all(0 < metrics[f"ne/{output}"] < 10 for output in outputs)
