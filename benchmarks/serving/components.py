"""Which component exports to what, how exactly, and how large: each kind alone, and ensembles.

    python -m cetnet.benchmarks.serving.components [--only dien] [--aoti]

Models with random weights, each component's defaults but for `embedding_dim` 16, on a schema with every kind of
feature. Differences are the largest of a probability from the trained model's, as TorchRec looks its tables up.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, get_args

import torch
import typer
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cetnet.benchmarks.command import run_command
from cetnet.benchmarks.measured import machine
from cetnet.models.batch import Batch
from cetnet.models.cetnet import CETNet
from cetnet.models.config import CETNetConfig, FusionMode
from cetnet.models.registry import COMPONENTS
from cetnet.models.schema import Feature, Schema
from cetnet.models.served import Served, inputs_of
from cetnet.trainer.console import console, output
from cetnet.trainer.export.aoti import compile_aoti, load_aoti
from cetnet.trainer.export.model import export_program
from cetnet.trainer.export.onnx import to_onnx
from cetnet.trainer.export.program_file import check_program
from cetnet.trainer.export.quantize import store_tables, table_bytes

_ROWS = 2000
_BATCHES = (64, 1, 7)
SCHEMA = Schema(
    label="click",
    tables=dict.fromkeys(("user", "item", "category", "country", "hour", "tag"), _ROWS),
    features=(
        *(Feature(name=name, kind="categorical") for name in ("user", "item", "category", "country", "hour")),
        Feature(name="tags", kind="multi_valued", table="tag"),
        Feature(name="history", kind="sequence", table="item", max_length=20),
        Feature(name="categories", kind="sequence", table="category", max_length=20),
        Feature(name="searched", kind="sequence", table="tag", max_length=10, behavior="searches"),
        Feature(name="price", kind="dense"),
        Feature(name="age", kind="dense"),
    ),
)


def ensembles() -> dict[str, dict[str, Any]]:
    """Settings of the models: every component alone, then CETNet in each mode of fusion."""
    settings = {kind: {"kind": kind, "embedding_dim": 16} for kind in sorted(COMPONENTS)}
    pair = {kind: settings[kind] for kind in ("interformer", "dhen")}
    found = {kind: {"components": {kind: of_kind}} for kind, of_kind in settings.items()}
    return found | {
        f"CETNet of interformer and dhen, {mode}": {"components": pair, "fusion": {"mode": mode}}
        for mode in get_args(FusionMode)
    }


def batch(rows: int, seed: int, longest: int) -> Batch:
    """Random rows, lists of up to so many values, in the form that training reads."""
    random = torch.Generator().manual_seed(seed)
    values, lengths = [], []
    for feature in SCHEMA.id_features:
        most = min(longest, feature.max_length or 4)
        count = (
            torch.ones(rows, dtype=torch.int64)
            if feature.kind == "categorical"
            else torch.randint(0, most + 1, (rows,), generator=random)
        )
        lengths.append(count)
        values.append(torch.randint(0, _ROWS, (int(count.sum()),), generator=random))
    keys = [feature.name for feature in SCHEMA.id_features]
    sparse = KeyedJaggedTensor(keys, torch.cat(values), lengths=torch.cat(lengths).int())
    dense = torch.randn(rows, len(SCHEMA.dense_features), generator=random)
    return Batch(sparse, dense, torch.zeros(rows), torch.ones(rows), torch.arange(rows))


def measure(settings: dict[str, Any], folder: Path, aoti: bool) -> dict[str, str]:
    """A row of the table."""
    torch.manual_seed(0)
    model = CETNet(SCHEMA, CETNetConfig.model_validate(settings)).eval()
    for table in model.tables.parameters():
        torch.nn.init.normal_(table, std=0.3)
    batches = [batch(rows, seed, 20) for seed, rows in enumerate(_BATCHES)] + [batch(3, 9, 0)]
    with torch.no_grad():
        expected = [model(each)[1].logits.sigmoid() for each in batches]
    served = Served(model, SCHEMA)
    inputs = [inputs_of(SCHEMA, each.sparse, each.dense) for each in batches]
    found = {}

    def tried(name: str, write: Callable[[Path], Callable[..., Tensor]]) -> None:
        path = folder / f"{name}.pt2"
        try:
            run = write(path)
            with torch.no_grad():
                differences = [
                    float((run(**given) - wanted).abs().max())
                    for given, wanted in zip(inputs, expected, strict=True)
                ]
            found[name] = f"{max(differences):.0e}, {path.stat().st_size / 1e6:.1f} MB"
        except Exception as error:  # whatever torch says of what it can't export
            found[name] = f"no: {' '.join(str(error).split())[:200]}"

    def pt2(path: Path) -> Callable[..., Tensor]:
        torch.export.save(export_program(served, SCHEMA), path)
        check_program(path)
        return torch.export.load(path).module()

    store_tables(served, "float32")
    before = table_bytes(served)
    tried("pt2", pt2)
    tried("onnx", lambda path: _onnx(served, path))
    if aoti:
        tried("aoti", lambda path: _aoti(served, path))
    store_tables(served, "int8")
    tried("int8", pt2)
    found["int8"] += f", tables {table_bytes(served) / before:.3f}"
    return found


def _onnx(served: Served, path: Path) -> Callable[..., Tensor]:
    import onnxruntime

    to_onnx(export_program(served, SCHEMA), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda **given: torch.from_numpy(
        session.run(None, {name: tensor.numpy() for name, tensor in given.items()})[0]
    )


def _aoti(served: Served, path: Path) -> Callable[..., Tensor]:
    compile_aoti(export_program(served, SCHEMA), path)
    return load_aoti(path)


def table(rows: dict[str, dict[str, str]]) -> Iterator[str]:
    """Lines of Markdown."""
    columns = list(next(iter(rows.values())))
    yield f"| component | {' | '.join(columns)} |"
    yield f"|:--|{':--|' * len(columns)}"
    for name, row in rows.items():
        yield f"| {name} | {' | '.join(row[column] for column in columns)} |"


def main(
    only: Annotated[list[str] | None, typer.Option(help="Only this; repeat it.")] = None,
    aoti: Annotated[bool, typer.Option("--aoti", help="Compiled packages too: a minute each.")] = False,
) -> None:
    """Export every component to every form, and compare; 3 minutes on 2 cores, without --aoti."""
    rows = {}
    for name, settings in ensembles().items():
        if only and name not in only:
            continue
        start = time.perf_counter()
        with TemporaryDirectory() as folder:
            rows[name] = measure(settings, Path(folder), aoti)
        console.print(f"{name}: {rows[name]}, {time.perf_counter() - start:.0f} s")
    output.print(f"{machine()}, torch {torch.__version__}", *table(rows), sep="\n")


if __name__ == "__main__":
    run_command(main)
