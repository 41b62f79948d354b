"""World sizes, plans and a plain PyTorch model all give the same loss curve."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from cetnet.models.cetnet import CETNet
from cetnet.models.component import Inputs
from cetnet.models.embeddings import initial_rows
from cetnet.models.schema import Schema
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.processes.distributed import Processes
from cetnet.trainer.schedule import schedule
from cetnet.trainer.session import build_session
from tests.data import write_dataset
from tests.processes import run_processes, run_settings, train_all

# 50 steps of 64 rows, the last one padded.
ROWS = 3190
PLANS = {
    "planned": {},
    "table_wise": {"constraints": {"*": {"sharding_types": ["table_wise"]}}},
    "row_wise": {"constraints": {"*": {"sharding_types": ["row_wise"]}}},
    "dense_where_small": {"dense_tables": ["*__user", "*__item"]},
    "all_dense": {"dense_tables": ["*"]},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_dataset(path, {"train": ROWS, "test": 200}, row_group_size=150, weight=True)
    return path


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every plan on 1, 2 and 4 processes."""
    out = tmp_path_factory.mktemp("runs")
    for world_size in (1, 2, 4):
        settings = [
            run_settings(dataset, out / f"{plan}-{world_size}", sharding=sharding)
            for plan, sharding in PLANS.items()
        ]
        run_processes(train_all, world_size, settings)
    return out


@pytest.fixture(scope="module")
def plain(dataset: Path) -> list[float]:
    return plain_losses(dataset)


def curve(run: Path, key: str = "loss") -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if line["kind"] == "train"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("plan", ["planned", "table_wise", "row_wise"])
def test_same_loss_curve_as_plain_pytorch(runs: Path, plain: list[float], plan: str, world_size: int) -> None:
    losses = curve(runs / f"{plan}-{world_size}")
    assert len(losses) == 50
    np.testing.assert_allclose(losses, plain, rtol=1e-4)
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:5])


@pytest.mark.parametrize("plan", ["dense_where_small", "all_dense"])
def test_dense_tables_give_the_same_curve_on_any_world_size(runs: Path, plan: str) -> None:
    for world_size in (2, 4):
        np.testing.assert_allclose(curve(runs / f"{plan}-{world_size}"), curve(runs / f"{plan}-1"), rtol=1e-4)


@pytest.mark.parametrize("plan", ["table_wise", "row_wise"])
def test_plans_are_what_the_constraints_say(runs: Path, plan: str) -> None:
    saved = json.loads((runs / f"{plan}-2" / "plan.json").read_text())
    assert {table["sharding_type"] for table in saved["tables"]} == {plan}
    assert {table["table"] for table in saved["tables"]} == {
        f"{component}__{table}"
        for component in ("interformer", "dhen", "dcnv2")
        for table in ("user", "item", "tag", "query")
    }


def test_evaluation_is_the_same_on_any_world_size(runs: Path) -> None:
    results = [json.loads((runs / f"planned-{n}" / "result.json").read_text()) for n in (1, 2, 4)]
    for result in results[1:]:
        assert result["splits"]["test"] == pytest.approx(results[0]["splits"]["test"], abs=1e-5)
        assert result["train"] == pytest.approx(results[0]["train"], abs=1e-6)
        sums, expected = result["progressive"], results[0]["progressive"]
        assert sums.pop("loss") == pytest.approx(expected["loss"], rel=1e-5)
        assert sums == pytest.approx({key: expected[key] for key in ("weight", "positive")})
        assert result["multiply_adds"] == results[0]["multiply_adds"] > 0
    predictions = [pq.read_table(runs / f"planned-{n}" / "predictions" / "test.parquet") for n in (1, 4)]
    assert predictions[0]["row"].to_pylist() == list(range(200))
    np.testing.assert_allclose(
        predictions[0]["fused"].to_numpy(), predictions[1]["fused"].to_numpy(), atol=1e-5
    )


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_sharded_module_is_pipelined(dataset: Path, tmp_path: Path, world_size: int) -> None:
    run_processes(assert_pipelined, world_size, run_settings(dataset, tmp_path / "run"))


def assert_pipelined(processes: Processes, settings: dict[str, Any]) -> None:
    config = RunConfig.model_validate(settings)
    dataset = Dataset(config.data.path, "train")
    session = build_session(config, dataset.schema, processes)
    reader = Reader(dataset, 64, lanes=4, rank=processes.rank, world_size=processes.world_size)
    session.pipeline.progress(reader.batches(0))
    # InterFormer: an EmbeddingCollection and an EmbeddingBagCollection; the others: the latter.
    assert len(session.pipeline._pipelined_modules) == 4


def plain_losses(path: Path) -> list[float]:
    """The same training with nn.Embedding, Python loops over rows and a row-wise Adagrad by hand."""
    config = RunConfig.model_validate(run_settings(path, Path("unused")))
    dataset = Dataset(path, "train")
    schema = dataset.schema
    torch.manual_seed(config.training.seed)
    model = CETNet(schema, config.model, table_device="meta")
    rows = pq.read_table(path / "train").to_pylist()
    clicks = sum(row[schema.weight] * row[schema.label] for row in rows)
    model.start_at(clicks / sum(row[schema.weight] for row in rows))
    tables = {
        (name, table): nn.Embedding(
            rows,
            component.embedding_dim,
            _weight=initial_rows(
                f"{name}__{table}",
                0,
                rows,
                component.embedding_dim,
                component.embedding_std,
                config.training.seed,
            ),
        )
        for name, component in config.model.components.items()
        for table, rows in schema.tables.items()
    }
    dense = [p for name, p in model.named_parameters() if not name.startswith("tables.")]
    optimizer = torch.optim.Adam(dense, lr=config.optimizer.dense.lr)
    moments = {key: torch.zeros(len(table.weight)) for key, table in tables.items()}
    reader = Reader(dataset, 64, lanes=4, shuffle_rows=100, seed=config.training.seed)
    losses = []
    batches = list(reader.batches(0))
    for number, batch in enumerate(batches):
        scale = schedule(config.optimizer, number, len(batches))
        optimizer.param_groups[0]["lr"] = config.optimizer.dense.lr * scale
        step = [rows[i] for i in batch.row.tolist() if i >= 0]
        members = [
            tower.component(plain_inputs(schema, step, name, tables, tower.assembly.shape.num_sequences))
            for name, tower in model.towers.items()
        ]
        label = torch.tensor([float(row[schema.label]) for row in step])
        weight = torch.tensor([row[schema.weight] for row in step])
        loss, _ = model.objective(members, label, weight, torch.zeros(len(step)))
        loss = loss * len(step) / 64  # the loss counts the padding of the last batch
        losses.append(loss.item())
        optimizer.zero_grad()
        for table in tables.values():
            table.weight.grad = None
        loss.backward()
        optimizer.step()
        for key, table in tables.items():
            row_wise_adagrad(
                table.weight, moments[key], config.optimizer.sparse.lr * scale, config.optimizer.sparse.eps
            )
    return losses


def plain_inputs(
    schema: Schema,
    rows: list[dict],
    component: str,
    tables: dict[tuple[str, str], nn.Embedding],
    sequences: int,
) -> Inputs:
    def look_up(feature: Any, row: dict) -> Tensor:
        ids = row[feature.name] if isinstance(row[feature.name], list) else [row[feature.name]]
        return tables[component, feature.table](torch.tensor(ids, dtype=torch.long))

    def mean(feature: Any, row: dict) -> Tensor:
        embeddings = look_up(feature, row)
        return embeddings.sum(0) / max(len(embeddings), 1)

    def padded(feature: Any, row: dict, length: int) -> Tensor:
        embeddings = look_up(feature, row)
        return torch.cat([embeddings, embeddings.new_zeros(length - len(embeddings), embeddings.shape[1])])

    histories = schema.of_kind("sequence")
    pooled = schema.of_kind("categorical", "multi_valued") + ([] if sequences else histories)
    longest = max(feature.max_length or 0 for feature in histories)
    dim = next(iter(table.embedding_dim for key, table in tables.items() if key[0] == component))
    empty = SimpleNamespace(
        sequences=torch.zeros(len(rows), 0, 0, dim), lengths=torch.zeros(len(rows), 0, dtype=torch.long)
    )
    return Inputs(
        tokens=torch.stack([torch.stack([mean(f, row) for f in pooled]) for row in rows]),
        sequences=torch.stack([torch.stack([padded(f, row, longest) for f in histories]) for row in rows])
        if sequences
        else empty.sequences,
        lengths=torch.tensor([[len(row[f.name]) for f in histories] for row in rows])
        if sequences
        else empty.lengths,
        dense=torch.tensor([[row[f.name] for f in schema.dense_features] for row in rows]),
        extra=torch.zeros(len(rows), 0),
    )


@torch.no_grad()
def row_wise_adagrad(weight: Tensor, moment: Tensor, lr: float, eps: float) -> None:
    assert weight.grad is not None
    moment += weight.grad.square().mean(1)
    weight -= lr * weight.grad / (moment.sqrt() + eps)[:, None]
