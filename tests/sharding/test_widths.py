"""Lookups and one step of wide tables, compared with plain PyTorch; on CUDA they are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cetnet.models.schema import Feature, Schema
from cetnet.sharding.planner import Plan
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.session import build_model, build_session, plan_model
from tests.processes import run_settings

LR, EPS = 0.1, 1e-6
TAGS, ITEMS = 7, 9
SCHEMA = Schema(
    label="click",
    tables={"tags": TAGS, "item": ITEMS},
    features=(
        Feature(name="tags", kind="multi_valued"),
        Feature(name="history", kind="sequence", table="item", max_length=4),
    ),
)
IDS = [1, 2, 6, 6, 6, 0]  # of rows that look up 2, 0 and 4
LENGTHS = [2, 0, 4]


def config(width: int, sharding: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    din = {"kind": "din", "embedding_dim": width, "hidden_units": [4], "attention_units": [4]}
    changes = {"model": {"components": {"din": din}}, "sharding": sharding or {}, **settings}
    return RunConfig.model_validate(run_settings(Path("unused"), Path("unused"), **changes))


def stepped(weight: Tensor, gradient: Tensor, optimizer: str) -> Tensor:
    """The weights after the first step; rows that were not looked up have no gradient."""
    squares = gradient**2
    if optimizer == "sgd":
        return weight - LR * gradient
    if optimizer == "rowwise_adagrad":
        squares = squares.mean(1, keepdim=True)
    return weight - LR * gradient / (squares.sqrt() + EPS)


def check(width: int, optimizer: str, precision: str, processes: Processes) -> None:
    settings = config(
        width,
        optimizer={"sparse": {"kind": optimizer, "lr": LR} | ({} if optimizer == "sgd" else {"eps": EPS})},
        training={"device": "cpu", "table_precision": precision},
    )
    session = build_session(settings, SCHEMA, processes)
    tables: Any = session.model.module.tables["din"]  # type: ignore[union-attr, index]
    weights = {k.split(".")[-2]: v for k, v in tables.state_dict().items() if k.endswith(".weight")}
    rows = {name: weight.local_shards()[0].tensor for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(width)
    for tensor in rows.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    before = {name: tensor.float().clone().requires_grad_() for name, tensor in rows.items()}

    ids = KeyedJaggedTensor.from_lengths_sync(
        ["tags", "history"], torch.tensor(IDS + IDS), torch.tensor(LENGTHS + LENGTHS)
    )
    pooled, unpooled = (looked_up.wait() for looked_up in tables(ids))
    found = [pooled["tags"], unpooled["history"].values()]
    expected = [
        F.embedding_bag(torch.tensor(IDS), before["din__tags"], torch.tensor([0, 2, 2]), mode="sum"),
        F.embedding(torch.tensor(IDS), before["din__item"]),
    ]
    gradients = [torch.randn(values.shape, generator=generator) for values in expected]
    for values, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(values, wanted.detach(), rtol=1e-5, atol=1e-5, msg=f"{width} {precision}")
    torch.autograd.backward(found, gradients)
    torch.autograd.backward(expected, gradients)

    tolerance = 1e-4 if precision == "fp32" else 0.01
    for name, weight in before.items():
        assert weight.grad is not None
        after = stepped(weight.detach(), weight.grad, optimizer)
        torch.testing.assert_close(rows[name].float(), after, rtol=tolerance, atol=tolerance)


def test_on_a_cpu_tables_of_any_width_are_looked_up_and_learn() -> None:
    with process_group("cpu") as processes:
        for optimizer in ("rowwise_adagrad", "adagrad", "sgd"):
            check(1028, optimizer, "fp32", processes)
        check(4096, "rowwise_adagrad", "fp16", processes)


def plan(width: int, device: str, sharding: dict[str, Any] | None = None) -> Plan:
    settings = config(width, sharding)
    return plan_model(build_model(settings, SCHEMA, "meta"), settings, SCHEMA, device, 4, 4)


def test_on_cuda_what_its_kernels_may_return_zeros_for_is_refused() -> None:
    assert len(plan(1024, "cuda").placements) == 2
    assert len(plan(4096, "cpu").placements) == 2
    with pytest.raises(UserError, match="table din__item has vectors of 1,028 numbers"):
        plan(1028, "cuda")
    split = {"constraints": {"*": {"sharding_types": ["column_wise"]}}}
    assert all(len(placement.ranks) > 1 for placement in plan(2048, "cuda", split).placements)
    assert plan(1028, "cuda", {"dense_tables": ["*"]}).placements == []
