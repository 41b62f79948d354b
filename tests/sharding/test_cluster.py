"""Shapes, kinds and descriptions of clusters; the planner's shortcuts on large ones."""

from pathlib import Path

import pytest
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer

import cetnet.sharding.planner
from cetnet.benchmarks.growth.big_schema import big_schema
from cetnet.sharding.cluster import GPUS, parse_cluster, parse_description, parse_sweep
from cetnet.sharding.config import ClusterConfig, CommunicationConfig
from cetnet.sharding.planner import Plan, topology
from cetnet.sharding.proposers import OneOfEachSize
from cetnet.sharding.sharders import sharders
from cetnet.trainer.config import RunConfig
from cetnet.trainer.session import build_model, plan_model
from tests.processes import run_settings


def test_shapes() -> None:
    cluster = parse_cluster("64x8:h100")
    assert cluster is not None
    assert (cluster.nodes, cluster.gpus_per_node, cluster.world_size) == (64, 8, 512)
    assert cluster.hardware.hbm_gb == GPUS["h100"].hbm_gb == 80
    plain = parse_cluster("2x4")
    assert plain is not None
    assert plain.hardware == ClusterConfig()
    for malformed in ("64", "x8", "0x8", "8x0", "8x8x8", "64x8:", "-1x8", "a100"):
        assert parse_cluster(malformed) is None
    with pytest.raises(ValueError, match=r"h1000.*known: v100"):
        parse_cluster("64x8:h1000")


def test_sweeps() -> None:
    parsed = parse_sweep("1x8..16x8:h100")
    assert parsed is not None
    assert parsed[0].gpu == "h100"
    assert parsed[1] == [1, 2, 4, 8, 16]
    assert parse_sweep("3x8..20x8") == (parse_cluster("3x8"), [3, 6, 12, 20])
    assert parse_sweep("1x8..3x8") == (parse_cluster("1x8"), [1, 2, 3])
    assert parse_sweep("1x8:h100..4x8") == parse_sweep("1x8..4x8:h100") == parse_sweep("1x8:h100..4x8:h100")
    for malformed in ("1x8", "1x8..", "1x8..2x4", "4x8..2x8", "..2x8", "1x8:h100..2x8:l4"):
        assert parse_sweep(malformed) is None


def test_a_description_has_precedence_over_the_kind() -> None:
    cluster = parse_description({"nodes": 2, "gpus_per_node": 4, "gpu": "l4", "inter_host_bandwidth": 3})
    assert cluster.hardware.inter_host_bandwidth == 3
    assert cluster.hardware.hbm_gb == GPUS["l4"].hbm_gb
    assert cluster.bf16_tflops == GPUS["l4"].bf16_tflops


def test_big_schema_refuses_too_few_rows() -> None:
    with pytest.raises(ValueError, match=r"500 rows.*1,000 tables"):
        big_schema(1000, 500)


def settings(**sections: object) -> RunConfig:
    cluster = {"hbm_gb": 80, "hbm_bandwidth": 3350, "intra_host_bandwidth": 450, "inter_host_bandwidth": 50}
    base = run_settings(Path("unused"), Path("unused"), sharding={"cluster": cluster, **sections})
    components = {name: {"kind": "dnn", "embedding_dim": 16, "hidden_units": [8]} for name in ("a", "b")}
    return RunConfig.model_validate(base | {"model": {"components": components}})


def test_one_shard_of_each_size_is_estimated_like_all() -> None:
    config = settings()
    model = build_model(config, big_schema(10, 10**7), "meta")
    topo = topology(config.sharding.cluster, 12, 4, "cuda")
    every, few = (
        kind(topology=topo, batch_size=64).enumerate(model, sharders(CommunicationConfig(), "cuda"))
        for kind in (EmbeddingEnumerator, OneOfEachSize)
    )
    assert len(every) == len(few) > 50
    for a, b in zip(every, few, strict=True):
        assert (a.fqn, a.sharding_type, a.compute_kernel) == (b.fqn, b.sharding_type, b.compute_kernel)
        assert a.shards == b.shards


def slowest(plan: Plan, world_size: int) -> float:
    """TorchRec's rating of a plan."""
    total = [0.0] * world_size
    for table in plan.placements:
        for rank, phases in zip(table.ranks, table.phases, strict=True):
            total[rank] += sum(phases)
    return max(total)


def test_splitting_the_largest_is_as_good_as_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    config, schema = settings(), big_schema(30, 10**9)
    model = build_model(config, schema, "meta")
    quick = plan_model(model, config, schema, "cuda", 16, 8)
    assert len(quick.placements) == 60
    assert {len(table.ranks) for table in quick.placements} > {1}
    monkeypatch.setattr(
        cetnet.sharding.planner,
        "EmbeddingShardingPlanner",
        _with_proposers(GreedyProposer(), UniformProposer()),
    )
    thorough = plan_model(model, config, schema, "cuda", 16, 8)
    assert slowest(quick, 16) <= 1.05 * slowest(thorough, 16)


def _with_proposers(*proposers: object) -> object:
    planner = cetnet.sharding.planner.EmbeddingShardingPlanner
    return lambda **arguments: planner(**arguments | {"proposer": list(proposers)})


def test_on_large_clusters_small_tables_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cetnet.sharding.planner, "_MAX_SPLIT_SHARDS", 64)
    config, schema = settings(), big_schema(30, 10**9)
    plan = plan_model(build_model(config, schema, "meta"), config, schema, "cuda", 16, 8)
    weighed = {table.table: len(table.alternatives) for table in plan.placements}
    assert set(weighed.values()) == {1, 3}
    assert sum(count > 1 for count in weighed.values()) <= 32
    assert weighed["a__t0000"] == weighed["b__t0000"] == 3  # the largest
    assert weighed["a__t0028"] == 1
