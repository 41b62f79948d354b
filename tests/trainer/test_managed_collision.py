"""Tables with managed collision as far as the CPU can: plans for CUDA, reading the map, checkpoints, refusals."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch.distributed._shard.sharded_tensor import ShardedTensor

from cetnet.models.schema import Schema
from cetnet.sharding.planner import managed_tables
from cetnet.trainer.checkpoint.checkpoints import Checkpoints, SavedTables, load_checkpoint
from cetnet.trainer.cli import main
from cetnet.trainer.config import RunConfig
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.run_writer import RunWriter
from cetnet.trainer.session import Session, build_model, build_session, plan_model
from cetnet.trainer.yaml_files import save_yaml
from tests.data import make_schema, make_table, write_split
from tests.processes import run_settings
from tests.trainer.prepare.slow import loop_hash

LANES, ROWS = 4, 40
MODEL = {
    "components": {
        "wide": {"kind": "wide_deep", "embedding_dim": 4, "hidden_units": [8]},
        "din": {"kind": "din", "embedding_dim": 8, "hidden_units": [8]},
    }
}


def make_managed_schema() -> Schema:
    schema = make_schema()
    tables = schema.tables | {"user": ROWS, "item": ROWS}
    return Schema.model_validate(
        schema.model_dump() | {"tables": tables, "managed_collision": ["user", "item"]}
    )


def make_config(folder: Path, **sections: Any) -> RunConfig:
    return RunConfig.model_validate(
        run_settings(folder / "data", folder / "run", **{"model": MODEL, **sections})
    )


def test_plans_for_cuda(tmp_path: Path) -> None:
    """Row-wise, whatever else there is to choose from; the other tables are as ever."""
    schema, config = make_managed_schema(), make_config(tmp_path)
    model = build_model(config, schema, "meta")
    managed = {f"{c}__{t}" for c in ("wide", "din") for t in ("user", "item")}
    assert managed_tables(model) == managed | {f"wide__{f}__extra" for f in ("user", "item", "history")}
    plan = plan_model(model, config, schema, "cuda", 4, 4)
    types = {placement.table: (placement.sharding_type, placement.kernel) for placement in plan.placements}
    assert managed | {"wide__tag", "din__query"} <= set(types)
    assert {types[table] for table in managed_tables(model)} == {("row_wise", "fused")}
    with pytest.raises(UserError, match=r"data.lanes=4 is not a multiple of the 8 processes"):
        plan_model(model, config, schema, "cuda", 8, 8)
    config = make_config(
        tmp_path, sharding={"constraints": {"din__user": {"sharding_types": ["table_wise"]}}}
    )
    with pytest.raises(UserError, match="'din__user' has managed collision and can be row_wise only"):
        plan_model(build_model(config, schema, "meta"), config, schema, "cuda", 4, 4)


def test_what_cannot_be_built(tmp_path: Path) -> None:
    schema = make_managed_schema()
    with pytest.raises(
        UserError, match=r"wide__user has managed collision and can't be in sharding.dense_tables"
    ):
        build_model(make_config(tmp_path, sharding={"dense_tables": ["*user"]}), schema, "meta")
    schema = schema.model_copy(update={"tables": schema.tables | {"user": 50}})
    with pytest.raises(UserError, match=r"50 rows, which must be a multiple of data.lanes=4"):
        build_model(make_config(tmp_path), schema, "meta")


def row_of_each_id() -> tuple[list[int], list[int]]:
    """Raw ids that fill a table of ROWS rows, in the order of the rows, and what they are hashed to."""
    buckets: list[list[int]] = [[] for _ in range(LANES)]
    for raw in range(10**12, 10**12 + 100 * ROWS):
        bucket = buckets[(1 + loop_hash(str(raw)) % (2**62 - 1)) % LANES]
        if len(bucket) < ROWS // LANES:
            bucket.append(raw)
    raw_ids = [raw for bucket in buckets for raw in bucket]
    return raw_ids, [1 + loop_hash(str(raw)) % (2**62 - 1) for raw in raw_ids]


def fill_maps(session: Session, ids: list[int]) -> None:
    for key, value in session.model.state_dict().items():
        if key.endswith("_hash_zch_identities"):
            value.local_shards()[0].tensor.copy_(torch.tensor(ids).unsqueeze(1))


def write_raw_data(folder: Path, raw_ids: list[int]) -> None:
    """`data/test`, whose users and items are raw ids instead of row numbers."""
    schema = make_managed_schema()
    table, names = make_table(schema, 64), pa.array(raw_ids)
    history = table["history"].combine_chunks()
    columns = {
        "user": names.take(table["user"].combine_chunks()),
        "item": names.take(table["item"].combine_chunks()),
        "history": pa.ListArray.from_arrays(history.offsets, names.take(history.values)),
    }
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    write_split(folder / "data/test", table, [[64]])
    save_yaml(folder / "data/schema.yaml", schema)


def test_reading_the_map_and_keeping_it_in_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw_ids, ids = row_of_each_id()
    write_raw_data(tmp_path, raw_ids)
    with process_group("cpu") as processes:
        save_load_and_look_up(tmp_path, processes, ids)
    # What CUDA trained can be scored here.
    out = str(tmp_path / "out.parquet")
    command = ["cetnet", "predict", str(tmp_path / "run"), str(tmp_path / "data"), "--out", out]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="0"):
        main()
    assert np.isfinite(pq.read_table(out)["fused"].to_numpy()).all()


def save_load_and_look_up(tmp_path: Path, processes: Processes, ids: list[int]) -> None:
    schema, config = make_managed_schema(), make_config(tmp_path)
    session = build_session(config, schema, processes)
    fill_maps(session, ids)
    session.optimizer.init_state()

    checkpoints = Checkpoints(config.run_dir / "checkpoints", keep=1)
    checkpoints.save("step-000000001", session.model, session.optimizer, {"progress": {}, "ne": {}})
    checkpoints.close()
    RunWriter(config, schema, session.plan, 1)
    (step,) = (config.run_dir / "checkpoints").iterdir()
    saved = {(table.owner, table.name): table.rows for table in SavedTables(step).tables}
    assert saved["din", "item"] == saved["wide", "user"] == ROWS
    other = build_session(make_config(tmp_path, training={"seed": 8, "device": "cpu"}), schema, processes)
    load_checkpoint(step, other.model, other.optimizer)
    states = [one.model.state_dict() for one in (session, other)]
    assert sum("_hash_zch_" in key for key in states[0]) >= 3 * 7
    for key, value in states[0].items():
        assert torch.equal(whole(value), whole(states[1][key])), key

    # The map is read: a raw id is looked up in the row that has its number.
    weights = {
        key.split(".")[-2]: whole(value) for key, value in states[0].items() if key.endswith(".weight")
    }
    other.model.eval()
    (batch,) = Reader(Dataset(tmp_path / "data", "test"), 64, order="sequential").batches(0)
    prepared = make_table(schema, 64)
    with torch.no_grad():
        for owner in ("wide", "din"):
            tables = other.model.module.tables[owner]
            looked_up = dict(zip(tables.collections, tables(batch.sparse), strict=True))
            group = tables.collection_of["user"]
            assert group == "pooled_managed"
            expected = weights[f"{owner}__user"][torch.from_numpy(prepared["user"].to_numpy().copy())]
            assert torch.equal(looked_up[group]["user"], expected)
        history = looked_up["unpooled_managed"].get("history").values()
    rows = np.concatenate(prepared["history"].to_pylist()).astype(np.int64)
    assert torch.equal(history, weights["din__item"][torch.from_numpy(rows)])


def whole(value: Any) -> torch.Tensor:
    return value.local_shards()[0].tensor if isinstance(value, ShardedTensor) else value


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (
            "training.nonfinite=stop",
            ["schema.yaml: tables with managed_collision train on CUDA only", "user, item in hashed"],
        ),
        (
            "training.nonfinite=skip",
            ["training.nonfinite=skip cannot leave a step out with managed_collision"],
        ),
    ],
)
def test_training_is_refused(
    override: str,
    named: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_raw_data(tmp_path, list(range(ROWS)))
    settings = make_config(tmp_path).model_dump(mode="json", exclude_none=True)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(
        sys, "argv", ["cetnet", "train", str(tmp_path / "experiment.yaml"), "data.split=test", override]
    )
    with pytest.raises(SystemExit, match="2"):
        main()
    (line,) = capfd.readouterr().err.splitlines()
    assert all(text in line for text in named)
    assert not (tmp_path / "run").exists()
