"""An export folder of a tiny model in plain PyTorch, with every kind of column."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cetnet.trainer.encoder.encode import Encoder
from cetnet.trainer.export.examples import draw_examples
from tests.paths import ROOT
from tests.trainer.encoder.exported import encoding_of, write_request

FEATURES = [
    {"name": "user", "kind": "categorical", "column": "the user's id"},
    {"name": "item", "kind": "categorical"},
    {"name": "place", "kind": "categorical", "hash": 20},
    {"name": "device", "kind": "categorical"},
    {"name": "tags", "kind": "multi_valued"},
    {"name": "history", "kind": "sequence", "table": "item", "max_length": 4},
    {"name": "price", "kind": "dense", "transform": "log1p"},
    {"name": "age", "kind": "dense", "transform": "standardize"},
]
VALUES = {
    "user": ["9007199254740993", "9007199254740992", "-1"],
    "item": [f"item {i}" for i in range(20)] + ["雪\0'\""],
    "tags": ["a", "b,c", "|", "d\r\ne"],
}
OUTPUTS = ["fused", "deep"]


class Toy(nn.Module):
    """Reads `rows` of one table, whatever numbers come in."""

    def __init__(self, rows: int = 40) -> None:
        super().__init__()
        self.rows = rows
        self.table, self.logits = nn.Embedding(rows, 4), nn.Linear(14, len(OUTPUTS))

    def forward(self, dense: Tensor, categorical: Tensor, multi_valued: Tensor, sequences: Tensor) -> Tensor:
        """`[outputs, B]`."""
        found = [dense, self._look_up(categorical).sum(1)]
        found += [self._look_up(lists).sum((1, 2)) for lists in (multi_valued, sequences)]
        return self.logits(torch.cat(found, dim=1)).sigmoid().t()

    def _look_up(self, ids: Tensor) -> Tensor:
        known = torch.where((ids >= 0) & (ids < self.rows), ids, 0)
        return self.table(known) * (ids != -1).unsqueeze(-1)


def toy_program(model: Toy) -> ExportedProgram:
    batch, values, events = Dim("batch", min=1), Dim("values", min=1), Dim("events", min=1)
    sizes = {"dense": (2, 2), "categorical": (2, 4), "multi_valued": (2, 1, 2), "sequences": (2, 1, 2)}
    inputs = {
        name: torch.zeros(size, dtype=torch.float32 if name == "dense" else torch.int64)
        for name, size in sizes.items()
    }
    axes = {"multi_valued": {2: values}, "sequences": {2: events}}
    shapes = {name: {0: batch, **axes.get(name, {})} for name in sizes}
    with fx_config.patch(backed_size_oblivious=True), torch.no_grad():  # type: ignore[attr-defined]
        return torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)


def write_toy(folder: Path) -> Toy:
    """Write the folder as `cetnet export` does; returns the model in it."""
    torch.manual_seed(1)
    model = Toy().eval()
    encoding = encoding_of(FEATURES, tables={"device": 3}, moments={"age": (40.0, 12.5)})
    write_request(folder, encoding, VALUES, OUTPUTS)
    torch.export.save(toy_program(model), folder / "model.pt2")
    examples = draw_examples(json.loads((folder / "request.json").read_text(encoding="utf-8")), folder)
    inputs = {name: torch.from_numpy(array) for name, array in Encoder(folder).encode(examples).items()}
    with torch.no_grad():
        expected = model(**inputs).numpy()
    for name, column in zip(OUTPUTS, expected, strict=True):
        examples = examples.append_column(f"expected/{name}", pa.array(column))
    pq.write_table(examples, folder / "examples.parquet")
    shutil.copytree(
        ROOT / "trainer/encoder", folder / "encoder", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "trainer/export/predict.py", folder)
    write_about(folder)
    return model


def write_about(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "about.json")
    digests = {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}
    about = {"tolerance": 1e-6, "sha256": digests}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def expected_of(folder: Path) -> np.ndarray:
    examples = pq.read_table(folder / "examples.parquet")
    return np.stack([examples[f"expected/{name}"].to_numpy() for name in OUTPUTS])
