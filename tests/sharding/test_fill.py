"""Initial values of tables of more than one block of rows, whole and split among ranks."""

import hashlib

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.config import RunConfig
from cetnet.trainer.processes.distributed import Processes
from cetnet.trainer.session import build_session
from tests.processes import run_processes

ROWS, BLOCK, SEED = 150_001, 65_536, 5
SCHEMA = Schema(
    label="label", tables={"item": ROWS}, features=(Feature(name="item", kind="categorical"),)
)  # fmt: skip


def drawn_one_by_one(table: str) -> torch.Tensor:
    blocks = []
    for block in range(3):
        digest = hashlib.sha256(f"{SEED}/{table}/{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        blocks.append(torch.empty(BLOCK, 4).normal_(0.0, 1e-4, generator=generator))
    return torch.cat(blocks)[:ROWS]


def config(sharding: dict) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"path": ".", "batch_size": 16},
            "model": {"components": {"dnn": {"kind": "dnn", "embedding_dim": 4}}},
            "sharding": sharding,
            "training": {"seed": SEED, "device": "cpu"},
        }
    )


def check(processes: Processes) -> None:
    expected = drawn_one_by_one("dnn__item")
    for sharding in ({"constraints": {"*": {"sharding_types": ["row_wise"]}}}, {"dense_tables": ["*"]}):
        session = build_session(config(sharding), SCHEMA, processes)
        (weight,) = (v for k, v in session.model.state_dict().items() if k.endswith("dnn__item.weight"))
        row = 0
        if isinstance(weight, ShardedTensor):
            (shard,) = weight.local_shards()
            (row, _), weight = shard.metadata.shard_offsets, shard.tensor
            assert len(weight) < ROWS
        torch.testing.assert_close(weight, expected[row : row + len(weight)], rtol=0, atol=0)


def test_blocks_are_where_they_belong() -> None:
    run_processes(check, 2)
