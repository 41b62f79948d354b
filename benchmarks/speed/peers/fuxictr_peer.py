"""Contenders: FuxiCTR's DCNv2 and DIN, trained by its own `fit`; runs in the environment of `environment.py`.

Of `cetnet` it imports only what needs no library of ours: TorchRec isn't there. The batches are ready in memory. The
wheel has its DIN but not its DCNv2, which is put together here of its layers as in its repository. Adam, loss and
clipping of gradients are its defaults; regularizers are off, as in its templates.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from model_zoo.LongCTR.DIN.DIN import DIN
from torch import Tensor, nn

from cetnet.benchmarks.speed.peers.columns import Columns, read_columns
from cetnet.benchmarks.speed.step_log import StepLog

DIM = 16
SETTINGS: dict[str, Any] = {
    "embedding_dim": DIM,
    "optimizer": "adam",
    "loss": "binary_crossentropy",
    "metrics": ["logloss", "AUC"],
    "model_root": "",
    "verbose": 0,
}


class DCNv2(BaseModel):
    """3 full crosses beside an MLP of 3 x 400."""

    def __init__(self, feature_map: FeatureMap) -> None:
        super().__init__(feature_map, **SETTINGS)
        width = feature_map.sum_emb_out_dim()
        self.embedding_layer = FeatureEmbedding(feature_map, DIM)
        self.crossnet = CrossNetV2(width, 3)
        self.deep = MLP_Block(width, hidden_units=[400, 400, 400])
        self.fc = nn.Linear(width + 400, 1)
        self.compile(SETTINGS["optimizer"], SETTINGS["loss"], lr=1e-3)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities `[B, 1]`."""
        x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        joined = torch.cat([self.crossnet(x), self.deep(x)], dim=-1)
        return {"y_pred": self.output_activation(self.fc(joined))}


class Batches:
    """Batches without end, each after the first a step done: FuxiCTR's loop asks for the next when it is through."""

    def __init__(self, batches: list[Any], log: StepLog) -> None:
        self._batches, self._log = batches, log

    def __len__(self) -> int:
        return 1 << 40

    def __iter__(self) -> Iterator[Any]:
        for batch in itertools.cycle(self._batches):
            yield batch
            self._log.step()


def feature_map(features: dict[str, dict[str, Any]]) -> FeatureMap:
    """What FuxiCTR knows of the data."""
    result = FeatureMap("throughput", "")
    result.labels = ["label"]
    result.features.update(features)
    result.num_fields, result.default_emb_dim = result.get_num_fields(), DIM
    return result


def clicks(tables: dict[str, int], columns: Columns, size: int) -> tuple[BaseModel, list[Any]]:
    """DCNv2 and its batches."""
    specs: dict[str, dict[str, Any]] = {
        name: {"type": "categorical", "source": "", "vocab_size": rows} for name, rows in tables.items()
    }
    specs |= {name: {"type": "numeric", "source": ""} for name in columns if name.startswith("I")}
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    starts = range(0, len(tensors["label"]) - size + 1, size)
    return DCNv2(feature_map(specs)), [
        {name: column[start : start + size] for name, column in tensors.items()} for start in starts
    ]


def events(tables: dict[str, int], columns: Columns, size: int) -> tuple[BaseModel, list[Any]]:
    """DIN and its batches: of each row the events and then the candidate, one after the other."""
    specs: dict[str, dict[str, Any]] = {
        name: {"type": "categorical", "source": "" if name == "user" else "item", "vocab_size": rows}
        for name, rows in tables.items()
    }
    model = DIN(
        feature_map(specs),
        dnn_hidden_units=[512, 128, 64],
        dnn_activations="ReLU",
        attention_hidden_units=[64],
        attention_hidden_activations="Dice",
        **SETTINGS,
    )
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    batches = []
    for start in range(0, len(tensors["label"]) - size + 1, size):
        rows = {name: column[start : start + size] for name, column in tensors.items()}
        shown = {
            name: torch.cat([rows[history], rows[name].unsqueeze(1)], dim=1).flatten()
            for name, history in (("item", "items"), ("category", "categories"))
        }
        batches.append(({"user": rows["user"], "label": rows["label"]}, shown, rows["items"] > 0))
    return model, batches


def main() -> None:
    """Train until killed, over and over the first batches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=["dcnv2", "din"])
    parser.add_argument("data", type=Path)
    parser.add_argument("progress", type=Path)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--batches", type=int, default=200)
    arguments = parser.parse_args()
    tables = yaml.safe_load((arguments.data / "schema.yaml").read_text(encoding="utf-8"))["tables"]
    columns = read_columns(arguments.data, arguments.batches * arguments.batch_size)
    build = clicks if arguments.model == "dcnv2" else events
    model, batches = build(tables, columns, arguments.batch_size)
    del columns
    model.fit(Batches(batches, StepLog(arguments.progress)))


if __name__ == "__main__":
    main()
