"""Four processes as two hosts of two: hierarchical plans give the numbers of one process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from cetnet.trainer.checkpoint.checkpoints import SavedTables, latest_checkpoint
from cetnet.trainer.checkpoint.store import CHECKPOINTS
from tests.data import make_schema, write_dataset
from tests.processes import INTERFORMER, TRAINING, run_processes, run_settings, train_all

# Column shards are at least 128 wide: a grid over two hosts needs 256.
MODEL = {
    "components": {
        "interformer": INTERFORMER,
        "dhen": {
            "kind": "dhen",
            "embedding_dim": 256,
            "num_layers": 1,
            "interactions": ["dot"],
            "hidden_units": [16],
            "dot_hidden_units": [8],
        },
    }
}


def constraints(kind: str, *patterns: str) -> dict:
    """`kind` for the tables of these patterns, row-wise for the others."""
    return {
        pattern: {"sharding_types": [kind if pattern in patterns else "row_wise"]}
        for pattern in ("*", *patterns)
    }


POOLED = ("dhen__*", "interformer__user", "interformer__tag")
# Row-wise Adagrad has an accumulator per row *and column piece*; the element-wise one is the same under any split.
RUNS: dict[str, dict] = {
    "table_row_wise": {"sharding": {"constraints": constraints("table_row_wise", *POOLED)}},
    "grid_shard": {
        "sharding": {"constraints": constraints("grid_shard", *POOLED)},
        "optimizer": {"sparse": {"kind": "adagrad"}},
    },
    "fp16": {
        "training": TRAINING | {"table_precision": "fp16"},
        "sharding": {"constraints": {"*": {"sharding_types": ["row_wise"]}}},
    },
    "mixed": {
        "sharding": {"constraints": constraints("table_wise", "dhen__tag", "dhen__item", "dhen__query")},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hierarchy")
    write_dataset(out / "data", {"train": 630, "test": 100}, row_group_size=150)

    def settings(run: str, sections: dict) -> dict:
        return run_settings(out / "data", out / run, **{"model": MODEL, "training": TRAINING, **sections})

    alone = [settings(f"{name}-1", {**run, "sharding": {}}) for name, run in RUNS.items()]
    run_processes(train_all, 1, [*alone, settings("fp32-1", {})])
    run_processes(train_all, 4, [settings(f"{name}-4", run) for name, run in RUNS.items()], hosts=2)
    return out


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def tables(run: Path) -> dict[str, dict]:
    return {table["table"]: table for table in json.loads((run / "plan.json").read_text())["tables"]}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["table_row_wise", "grid_shard"])
def test_same_numbers_as_one_process(runs: Path, kind: str) -> None:
    assert len(losses(runs / f"{kind}-4")) == 10
    np.testing.assert_allclose(losses(runs / f"{kind}-4"), losses(runs / f"{kind}-1"), rtol=1e-4)


def test_same_numbers_where_a_collection_has_whole_and_split_tables(runs: Path) -> None:
    np.testing.assert_allclose(losses(runs / "mixed-4"), losses(runs / "mixed-1"), rtol=1e-4)


def test_table_row_wise_keeps_a_table_on_one_host(runs: Path) -> None:
    placed = tables(runs / "table_row_wise-4")
    kinds = {name: table["sharding_type"] for name, table in placed.items()}
    assert set(kinds.values()) == {"row_wise", "table_row_wise"}
    hosts = {
        tuple(sorted(table["ranks"]))
        for table in placed.values()
        if table["sharding_type"] == "table_row_wise"
    }
    assert hosts == {(0, 1), (2, 3)}


def test_grid_splits_columns_over_hosts_and_rows_within(runs: Path) -> None:
    placed = tables(runs / "grid_shard-4")
    assert placed["dhen__user"]["sharding_type"] == "grid_shard"
    assert sorted(placed["dhen__user"]["ranks"]) == [0, 1, 2, 3]
    assert sorted(placed["interformer__user"]["ranks"]) in ([0, 1], [2, 3])  # 8 columns: one piece


def test_half_precision_tables_train_alike_on_any_world_size(runs: Path) -> None:
    np.testing.assert_allclose(losses(runs / "fp16-4"), losses(runs / "fp16-1"), rtol=1e-3)
    np.testing.assert_allclose(losses(runs / "fp16-1"), losses(runs / "fp32-1"), rtol=2e-2)
    assert losses(runs / "fp16-1") != losses(runs / "fp32-1")


def test_tables_are_read_from_shards_as_they_are(runs: Path) -> None:
    """By rows and columns at once, some whole on one rank and some on all."""
    for run in ("grid_shard-4", "mixed-4"):
        checkpoint = latest_checkpoint(runs / run / CHECKPOINTS)
        assert checkpoint
        saved = SavedTables(checkpoint)
        state = {table.key: torch.zeros(table.rows, table.dim) for table in saved.tables}
        dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
        for name, rows in make_schema().tables.items():
            tables = [table for table in saved.tables if table.name == name]
            assert sorted(table.dim for table in tables) == [8, 256]
            together = torch.cat(list(saved.blocks(tables)))
            assert len(together) == rows
            assert torch.equal(together, torch.cat([state[table.key] for table in tables], dim=1))


def test_results_tell_bytes_and_memory(runs: Path) -> None:
    single, half, parallel = (
        json.loads((runs / run / "result.json").read_text()) for run in ("fp32-1", "fp16-1", "fp16-4")
    )
    assert single["table_bytes"] == 4 * single["parameters"]["tables"]
    assert half["table_bytes"] == parallel["table_bytes"] == 2 * half["parameters"]["tables"]
    assert parallel["peak_memory"] > 2 * half["peak_memory"] > 100e6
