"""`cetnet plan`: estimates that can be reckoned by hand, remedies that hold what they promise, errors."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from cetnet.models.schema import Feature, Schema
from cetnet.sharding.cluster import Cluster, parse_cluster
from cetnet.trainer.cli import main
from cetnet.trainer.config import DataConfig, RunConfig, load_config
from cetnet.trainer.plan.cluster_options import on_cluster, read_cluster
from cetnet.trainer.plan.estimate import estimate, refusal, single_models, sweep
from cetnet.trainer.plan.remedies import remedies
from cetnet.trainer.yaml_files import save_yaml
from tests.processes import run_settings

SCHEMA = Schema(
    label="click",
    tables={"user": 10_000_000, "item": 1_000_000, "country": 200},
    features=(
        Feature(name="user", kind="categorical"),
        Feature(name="item", kind="categorical"),
        Feature(name="country", kind="categorical"),
        Feature(name="age", kind="dense"),
    ),
)
GIB = 1024**3


def config(**sections: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"path": "unused", "batch_size": 4096},
            "model": {
                "components": {
                    "a": {"kind": "dnn", "embedding_dim": 16, "hidden_units": [8]},
                    "b": {"kind": "dcnv2", "embedding_dim": 8, "hidden_units": [8]},
                }
            },
            **sections,
        }
    )


def cluster(text: str) -> Cluster:
    found = parse_cluster(text)
    assert found is not None
    return found


def test_storage_by_hand() -> None:
    where = cluster("2x2:t4")
    result = estimate(on_cluster(config(), where), SCHEMA, where, "cuda")
    rows = 10_000_000 + 1_000_000 + 200
    assert sum(result.load.weights) == rows * (16 + 8) * 4
    # One float32 a row and table.
    assert sum(result.load.optimizer) == pytest.approx(rows * 2 * 4, rel=1e-6)
    assert sum(result.load.memory) == sum(result.plan.bytes_per_rank(4))
    assert min(result.load.buffers) >= 0
    assert not any(result.load.host)
    half = estimate(on_cluster(config(training={"table_precision": "fp16"}), where), SCHEMA, where, "cuda")
    assert sum(half.load.weights) == sum(result.load.weights) / 2


def test_dense_flops_by_hand() -> None:
    one = config(model={"components": {"a": {"kind": "dnn", "embedding_dim": 16, "hidden_units": [8]}}})
    where = cluster("1x4:t4")
    result = estimate(on_cluster(one, where), SCHEMA, where, "cuda")
    inputs = (3 + 1) * 16  # the dense feature is made a vector too
    forward = 2 * (inputs * 8 + 8)  # two layers: inputs -> 8 -> 1
    assert result.dense.flops == 3 * forward * 1024
    assert result.dense.compute_ms == pytest.approx(3 * forward * 1024 / (0.4 * 8.1e12) * 1000)


def test_attention_is_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    history = Feature(name="seen", kind="sequence", table="item", max_length=10)
    schema = SCHEMA.model_copy(update={"features": (*SCHEMA.features, history)})
    one = config(model={"components": {"a": {"kind": "interformer", "embedding_dim": 16}}})
    where = cluster("1x1:t4")
    flops = estimate(on_cluster(one, where), schema, where, "cuda").dense.flops
    monkeypatch.setattr(
        "cetnet.models.interformer.scaled_dot_product_attention",
        lambda query, *_, **__: torch.zeros_like(query),
    )
    without = estimate(on_cluster(one, where), schema, where, "cuda").dense.flops
    length = 4 + 10  # CLS tokens and events
    pairs = 2 * length * length + 3 * 2 * length  # 2 layers over themselves; 3 poolings by 2 queries
    # Scores and weighted sums: 2 products of 16 multiplications and additions a pair; backward twice that.
    assert flops - without == 3 * 4096 * pairs * 2 * 2 * 16


def test_what_cannot_be_counted_leaves_a_lower_bound() -> None:
    history = Feature(name="seen", kind="sequence", table="item", max_length=10)
    schema = SCHEMA.model_copy(update={"features": (*SCHEMA.features, history)})
    dnn = {"kind": "dnn", "embedding_dim": 16, "hidden_units": [8]}
    both = config(model={"components": {"dnn": dnn, "din": {"kind": "din", "embedding_dim": 16}}})
    where = cluster("1x2:t4")
    found = {name: result for name, _, result in sweep(both, schema, [where], "cuda", None) if result}
    assert {name: result.is_lower_bound for name, result in found.items()} == {
        "dnn": False,
        "din": True,
        "ensemble": True,
    }
    assert found["ensemble"].dense.uncounted == ("din",)
    assert found["ensemble"].dense.flops == found["dnn"].dense.flops > 0


def test_all_reduce_by_hand() -> None:
    """A ring has a host's whole network, but no more than its inner links."""
    one = config(model={"components": {"a": {"kind": "dnn", "embedding_dim": 16, "hidden_units": [8]}}})
    numel = 16 + 64 * 8 + 8 + 8 + 1  # the vector that age scales; weights and biases of two layers
    for shape, rate in (("1x4:t4", 16), ("2x4:t4", 4 * 1.56), ("2x16:t4", 16), ("4x1:t4", 1.56)):
        where = cluster(shape)
        dense = estimate(on_cluster(one, where), SCHEMA, where, "cuda").dense
        n = where.world_size
        assert dense.bytes == 4 * 4 * numel
        assert dense.all_reduce_ms == pytest.approx(2 * (n - 1) / n * 4 * numel / (rate * 1e9) * 1000)


def test_dense_and_frozen_tables_by_hand() -> None:
    """Tables held whole have their own optimizer's state; pretrained ones neither gradient nor state."""
    one = {"components": {"a": {"kind": "dnn", "embedding_dim": 16, "hidden_units": [8]}}}
    where = cluster("1x2:t4")
    base = config(model=one, optimizer={"dense_tables": {"kind": "sgd"}})
    held = config(
        model=one, optimizer={"dense_tables": {"kind": "sgd"}}, sharding={"dense_tables": ["a__country"]}
    )
    without, with_table = (estimate(on_cluster(c, where), SCHEMA, where, "cuda").dense for c in (base, held))
    assert with_table.bytes - without.bytes == 200 * 16 * 4 * 2
    assert with_table.all_reduce_ms is not None
    assert without.all_reduce_ms is not None
    more = with_table.all_reduce_ms - without.all_reduce_ms
    assert more == pytest.approx(200 * 16 * 4 / 16e9 * 1000)
    frozen = SCHEMA.model_copy(update={"pretrained": {"item": 24}})
    dense = estimate(on_cluster(base, where), frozen, where, "cuda").dense
    projection = 24 * 16
    assert dense.bytes - without.bytes == 1_000_000 * 24 * 4 + projection * 4 * 4
    assert dense.all_reduce_ms is not None
    assert dense.all_reduce_ms - without.all_reduce_ms == pytest.approx(projection * 4 / 16e9 * 1000)


TIGHT = {"sharding": {"cluster": {"hbm_gb": 0.8, "ddr_gb": 4}}}


@pytest.mark.parametrize("batch_per_gpu", [None, 4096])
def test_remedies_hold_what_they_promise(batch_per_gpu: int | None) -> None:
    where = cluster("1x1:t4")
    here = on_cluster(config(**TIGHT), where, batch_per_gpu)
    tried = list(remedies(here, SCHEMA, where, "cuda", batch_per_gpu))
    outcomes = {remedy.what: remedy.estimate for remedy in tried}
    assert set(outcomes) == {"fp16 tables", "host memory, cached on the GPU", "more hosts"}
    # 1.06 GB of rows and 0.09 of state on a GPU of 0.73 usable: half of the rows fit, two GPUs fit.
    for what, how, result in tried:
        assert result is not None, what
        if how.startswith("--cluster"):
            assert result.cluster.nodes == 2
            there = on_cluster(config(**TIGHT), result.cluster, batch_per_gpu)
            assert there.data.batch_size == 4096 * (2 if batch_per_gpu else 1)
            again = estimate(there, SCHEMA, result.cluster, "cuda")
        else:
            key, value = how.split("=")
            section, name = key.split(".")
            changed = here.model_dump()
            changed[section][name] = yaml.safe_load(value)
            again = estimate(RunConfig.model_validate(changed), SCHEMA, where, "cuda")
        assert max(again.load.memory) <= 0.85 * 0.8 * GIB
        assert again.load.memory == result.load.memory
        assert again.step_ms == result.step_ms
    host = outcomes["host memory, cached on the GPU"]
    assert host is not None
    assert max(host.load.host) > 0


def test_row_wise_is_a_remedy_where_constraints_forbid_it() -> None:
    whole = {"*": {"sharding_types": ["table_wise"]}}
    where = cluster("1x2:t4")
    tight = config(
        sharding={"cluster": {"hbm_gb": 0.7}, "constraints": whole}, training={"table_precision": "fp16"}
    )
    tight = on_cluster(tight.model_copy(update={"training": config().training}), where)
    first = next(iter(remedies(tight, SCHEMA, where, "cuda", None)))
    assert first.what == "row-wise allowed"
    assert first.estimate is not None
    split = {t.table for t in first.estimate.plan.placements if t.sharding_type == "row_wise"}
    assert "a__user" in split


def test_single_models_keep_what_concerns_them() -> None:
    patterns = ("a__user", "*", "[ab]__item", "?__country", "*b__*")
    constraints = {pattern: {"sharding_types": ["table_wise"]} for pattern in patterns}
    singles = single_models(config(sharding={"constraints": constraints}), SCHEMA)
    assert list(singles) == ["a", "b"]
    assert list(singles["b"].sharding.constraints) == ["*", "[ab]__item", "?__country", "*b__*"]
    assert list(singles["a"].sharding.constraints) == ["a__user", "*", "[ab]__item", "?__country"]
    assert single_models(singles["a"], SCHEMA) == {}


@pytest.mark.parametrize(
    ("data", "shape", "remedy"),
    [
        ({"batch_size": 4096}, "2x8", None),
        ({"batch_size": 4096}, "4x8", "data.lanes=32"),
        ({"batch_size": 4096}, "3x1", "data.batch_size=4095 data.lanes=3"),
        ({"batch_size": 4096, "order": "sequential"}, "4x8", None),
        ({"batch_size": 4096, "order": "sequential"}, "3x1", "data.batch_size=4095"),
        ({"batch_size": 4096, "lanes": 4096}, "1x4096", None),
    ],
)
def test_what_train_refuses(data: dict[str, object], shape: str, remedy: str | None) -> None:
    settings, where = config(data={"path": "unused", **data}), cluster(shape)

    def trains(data: DataConfig) -> bool:
        lanes = data.lanes if data.order == "shuffled" else where.world_size
        return lanes % where.world_size == 0 and data.batch_size % lanes == 0

    why = refusal(settings, where)
    assert trains(settings.data) == (why is None) == (remedy is None)
    if why and remedy:
        assert why.endswith(f"set {remedy}")
        changes = {key.removeprefix("data."): int(v) for key, v in (x.split("=") for x in remedy.split())}
        assert trains(settings.data.model_copy(update=changes))


def test_sweep() -> None:
    clusters = [cluster("1x2:t4").with_nodes(n) for n in (1, 2, 4)]
    found = {
        (name, c.nodes): result
        for name, c, result in sweep(config(), SCHEMA, clusters, "cuda", None)
        if result
    }
    assert len(found) == 9
    for name in ("a", "b", "ensemble"):
        memory = [sum(found[name, n].load.weights) for n in (1, 2, 4)]
        assert memory[0] == memory[1] == memory[2]
        # The same rows over more GPUs: each computes less.
        dense = [found[name, n].dense.compute_ms for n in (1, 2, 4)]
        assert dense == pytest.approx([dense[0], dense[0] / 2, dense[0] / 4])
        fullest = [max(found[name, n].load.memory) for n in (1, 2, 4)]
        assert fullest == sorted(fullest, reverse=True)
    for n in (1, 2, 4):
        parts = [sum(found[name, n].load.weights) for name in ("a", "b")]
        assert sum(found["ensemble", n].load.weights) == sum(parts)


@pytest.fixture
def cetnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`cetnet plan experiment.yaml --schema schema.yaml ...` in a folder of its own: code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    save_yaml(tmp_path / "schema.yaml", SCHEMA)
    settings = run_settings(Path("nowhere"), Path("run")) | {"model": config().model.model_dump(mode="json")}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))

    def call(*arguments: str) -> tuple[int, str, str]:
        arguments = ("cetnet", "plan", "experiment.yaml", "--schema=schema.yaml", *arguments)
        monkeypatch.setattr(sys, "argv", list(arguments))
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capfd.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_the_command_needs_no_data(cetnet: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = cetnet("--cluster=2x2:l4", "--json=plan.json")
    assert code == 0
    assert all(len(line) <= 120 for line in out.splitlines()[2:])
    for text in ("a__user", "table rows", "forward: lookup", "rows/s", "imbalance", "why"):
        assert text in out
    saved = json.loads(Path("plan.json").read_text(encoding="utf-8"))
    assert {table["table"] for table in saved["tables"]} == {
        f"{c}__{t}" for c in ("a", "b") for t in SCHEMA.tables
    }
    assert saved["estimate"]["memory_max"] == max(saved["bytes_per_rank"])


def test_sweep_draws(cetnet: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = cetnet("--cluster=1x1:l4", "--sweep=1x2..4x2", "--plot=sweep.png")
    assert code == 0
    for text in ("ensemble", "4x2:l4", "efficiency", "100%"):
        assert text in out
    assert Path("sweep.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_is_answered_with_what_does(cetnet: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = cetnet("--cluster=1x1:t4", "sharding.cluster.hbm_gb=0.8", "sharding.cluster.ddr_gb=4")
    assert code == 2
    assert "training.table_precision=fp16" in out
    assert err.splitlines()[-1].startswith("cetnet: no sharding plan")
    assert "--cluster 2x1:t4" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--cluster=64x8:h1000"], ["h1000", "known: v100", "h200"]),
        (["--cluster=64"], ["'64'", "64x8:h100"]),
        (["--cluster=nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["--cluster=list.yaml"], ["list.yaml", "mapping"]),
        (["--cluster=typo.yaml"], ["typo.yaml", "hbm_bg", "did you mean hbm_gb?"]),
        (["--cluster=short.yaml"], ["short.yaml", "gpus_per_node", "missing"]),
        (["--sweep=1x8-4x8"], ["1x8-4x8", "1x8..128x8"]),
        (["--sweep=1x8..4x8:gtx"], ["gtx", "known"]),
        (["--cluster=1000x8:h100"], ["data.batch_size=64", "8,000", "--batch-per-gpu"]),
        (["--schema=elsewhere.yaml"], ["elsewhere.yaml", "not found"]),
        (["--cluster=infinite.yaml"], ["infinite.yaml", "hbm_gb", "finite"]),
        (["sharding.cluster.ddr_gb=.inf"], ["sharding.cluster.ddr_gb", "finite"]),
        (["--json=short.yaml/plan.json"], ["short.yaml/plan.json", "cannot be written"]),
        (["--json=."], ["is a directory"]),
        (["--sweep=1x1..2x1", "--plot=short.yaml/sweep.png"], ["short.yaml/sweep.png", "cannot be written"]),
        (["--sweep=1x1..2x1", "--plot=sweep.gif2"], ["sweep.gif2", ".png", ".svg"]),
    ],
)
def test_mistakes_are_one_line(
    cetnet: Callable[..., tuple[int, str, str]], arguments: list[str], named: list[str]
) -> None:
    Path("list.yaml").write_text("- a\n- b\n", encoding="utf-8")
    Path("typo.yaml").write_text("{nodes: 1, gpus_per_node: 8, hbm_bg: 80}", encoding="utf-8")
    Path("short.yaml").write_text("nodes: 4", encoding="utf-8")
    Path("infinite.yaml").write_text("{nodes: 4, gpus_per_node: 1, hbm_gb: .inf}", encoding="utf-8")
    code, out, err = cetnet(*arguments)
    assert code == 2
    assert not out
    assert err.startswith("cetnet: ")
    assert err.count("\n") == 1
    assert all(text in err for text in named), err


def test_a_description_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{nodes: 3, gpus_per_node: 4, gpu: a100-80gb, inter_host_bandwidth: 12.5}")
    mine = read_cluster(str(file))
    assert (mine.nodes, mine.gpus_per_node, mine.hardware.inter_host_bandwidth) == (3, 4, 12.5)
    # The experiment file's own figures come last.
    settings = load_config(Path("configs/cetnet.yaml"), ["sharding.cluster.inter_host_bandwidth=6"])
    assert on_cluster(settings, mine).sharding.cluster.inter_host_bandwidth == 6
    assert on_cluster(settings, mine).sharding.cluster.hbm_gb == 80
