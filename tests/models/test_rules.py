"""What a run must keep to, and what is said where it doesn't."""

import re

import pytest

from cetnet.models.rules import (
    indivisible,
    managed_lanes_refused,
    managed_sharding_refused,
    managed_table_refused,
    managed_training_refused,
)


@pytest.mark.parametrize(
    ("batch_size", "lanes", "world_size", "complaint"),
    [
        (96, 16, 4, None),
        (12, None, 4, None),
        (100, 16, 1, "data.batch_size=100 is not a multiple of data.lanes=16; set data.batch_size=96"),
        (7, 16, 1, "data.batch_size=7 is not a multiple of data.lanes=16; set data.batch_size=16"),
        (10, None, 4, "data.batch_size=10 is not a multiple of the 4 processes; set data.batch_size=8"),
        (12, 4, 3, "data.lanes=4 is not a multiple of the 3 processes; set data.lanes=3"),
        (
            16,
            4,
            3000,
            "data.lanes=4 is not a multiple of the 3,000 processes; set data.batch_size=3000 data.lanes=3000",
        ),
    ],
)
def test_indivisible(batch_size: int, lanes: int | None, world_size: int, complaint: str | None) -> None:
    assert indivisible(batch_size=batch_size, lanes=lanes, world_size=world_size) == complaint


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("lanes", [None, 1, 4, 6])
def test_what_it_says_to_set_is_divisible(lanes: int | None, world_size: int) -> None:
    for batch_size in range(1, 30):
        complaint = indivisible(batch_size=batch_size, lanes=lanes, world_size=world_size)
        if complaint is not None:
            keys = dict(pair.split("=") for pair in complaint.partition("; set ")[2].split())
            batch = int(keys.get("data.batch_size", batch_size))
            new = int(keys["data.lanes"]) if "data.lanes" in keys else lanes
            assert batch % (new or world_size) == 0
            assert (new or world_size) % world_size == 0


def test_ranks_may_be_called_otherwise() -> None:
    complaint = indivisible(batch_size=4, lanes=4, world_size=6, ranks="3 x 2 processes")
    assert (
        complaint == "data.lanes=4 is not a multiple of 3 x 2 processes; set data.batch_size=6 data.lanes=6"
    )


def test_managed_collision() -> None:
    assert managed_table_refused("a__t", 8, dense=False, lanes=4) is None
    assert "sharding.dense_tables" in (managed_table_refused("a__t", 8, dense=True, lanes=4) or "")
    assert "6 rows, which must be" in (managed_table_refused("a__t", 6, dense=False, lanes=4) or "")
    assert managed_sharding_refused("a__t", ["table_wise", "row_wise"]) is None
    assert "row_wise only, not table_wise" in (managed_sharding_refused("a__t", ["table_wise"]) or "")
    assert managed_lanes_refused(lanes=8, world_size=4) is None
    assert "data.lanes=6" in (managed_lanes_refused(lanes=6, world_size=4) or "")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({}, None),
        ({"nonfinite": "skip"}, "training.nonfinite=stop"),
        ({"on_cpu": True}, "data/schema.yaml: .* name t in hashed instead"),
        ({"sparse_optimizer": "adam"}, "optimizer.sparse.kind=adam .* use rowwise_adagrad or sgd"),
        ({"tables": [], "sparse_optimizer": "adam", "on_cpu": True, "nonfinite": "skip"}, None),
    ],
)
def test_training_with_managed_collision(changed: dict, complaint: str | None) -> None:
    run = {
        "tables": ["t"],
        "schema_file": "data/schema.yaml",
        "nonfinite": "stop",
        "sparse_optimizer": "sgd",
        "on_cpu": False,
    }
    said = managed_training_refused(**run | changed)
    assert said is None if complaint is None else re.search(complaint, said or "")
