"""Plans for clusters that don't exist, and what is told of them."""

import io
from pathlib import Path

import pytest

from cetnet.models.schema import Feature, Schema
from cetnet.sharding.plan_table import human_bytes, plan_table
from cetnet.sharding.planner import Plan
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import PlainConsole
from cetnet.trainer.errors import UserError
from cetnet.trainer.session import build_model, count_parameters, plan_model
from tests.processes import run_settings

SCHEMA = Schema(
    label="click",
    tables={"user": 1_000_000_000, "item": 50_000_000, "country": 200},
    features=(
        Feature(name="user", kind="categorical"),
        Feature(name="item", kind="categorical"),
        Feature(name="country", kind="categorical"),
        Feature(name="history", kind="sequence", table="item", max_length=50, mean_length=30),
    ),
)


def plan(nodes: int = 8, gpus: int = 8, **sharding: object) -> Plan:
    cluster = {"hbm_gb": 80, "hbm_bandwidth": 3350, "intra_host_bandwidth": 450, "inter_host_bandwidth": 50}
    settings = run_settings(Path("unused"), Path("unused"), sharding={"cluster": cluster, **sharding})
    config = RunConfig.model_validate(settings)
    model = build_model(config, SCHEMA, "meta")
    assert count_parameters(model)["tables"] == 1_050_000_200 * (8 + 4 + 4)
    return plan_model(model, config, SCHEMA, "cuda", nodes * gpus, gpus)


def test_every_table_of_every_component_is_placed_without_a_cluster() -> None:
    result = plan()
    names = {f"{c}__{t}" for c in ("interformer", "dhen", "dcnv2") for t in SCHEMA.tables}
    assert {placement.table for placement in result.placements} == names
    by_name = {placement.table: placement for placement in result.placements}
    # A 32 GB table doesn't fit beside the others on one GPU of 80 GB unless it is split.
    assert len(set(by_name["interformer__user"].ranks)) > 1
    assert max(result.bytes_per_rank(64)) < 80 * 1024**3
    assert sum(result.bytes_per_rank(64)) > 1_050_000_200 * 16 * 4


def test_constraints_hold_and_the_last_pattern_counts() -> None:
    constraints = {
        "*": {"sharding_types": ["row_wise"]},
        "dhen__country": {"sharding_types": ["table_wise"]},
    }
    types = {p.table: p.sharding_type for p in plan(constraints=constraints).placements}
    assert types.pop("dhen__country") == "table_wise"
    assert set(types.values()) == {"row_wise"}


def test_dense_tables_are_not_placed() -> None:
    names = {p.table for p in plan(dense_tables=["*__country"]).placements}
    assert not any(name.endswith("country") for name in names)


def test_what_does_not_fit_is_one_line_that_says_so() -> None:
    with pytest.raises(UserError, match="no sharding plan") as error:
        plan(nodes=1, gpus=1)
    assert "\n" not in str(error.value)


def test_report_names_every_table_and_the_fullest_rank() -> None:
    result = plan()
    file = io.StringIO()
    PlainConsole(width=140, file=file).print(plan_table(result, 64))
    text = file.getvalue()
    assert all(placement.table in text for placement in result.placements)
    assert human_bytes(max(result.bytes_per_rank(64))) in text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 1024**3, "3.0 GiB")]
)
def test_human_bytes(size: int, text: str) -> None:
    assert human_bytes(size) == text
