"""`cetnet calibrate` in real processes, and what the planner makes of it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cetnet.sharding.config import ClusterConfig
from cetnet.trainer.cli import app
from cetnet.trainer.config import load_config
from cetnet.trainer.errors import UserError
from cetnet.trainer.plan.calibrate import Measurement, _bandwidth, calibrate, report
from cetnet.trainer.processes.distributed import Processes
from tests.processes import run_processes

EXPERIMENT = "data: {path: nowhere}\nmodel: {components: {dnn: {kind: dnn, embedding_dim: 4}}}\n"


def measure(processes: Processes, out: Path) -> None:
    """Two processes, once as one host and once as two."""
    for hosts in (1, 2):
        seen = replace(processes, local_world_size=2 // hosts)
        cluster, measured = calibrate(seen, embedding_dim=64, megabytes=0.01, seconds=0.0)
        # 8 tables x 4096 ids of 8 bytes, rows read and written of 64 x 4 bytes; planner: x 1.15, backward twice that.
        assert measured[0].bytes == pytest.approx(8 * 4096 * (8 + 256 + 256) * 1.15 * 3, rel=1e-3)
        assert {item.bytes for item in measured[1:]} == {10_000}
        if processes.is_main:
            report(cluster, measured, seen, out / f"{hosts}.yaml")


def test_calibration_is_a_cluster_that_a_run_can_be_given(tmp_path: Path) -> None:
    run_processes(measure, 2, tmp_path)
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT)
    for hosts, network in ((1, "intra_host_bandwidth"), (2, "inter_host_bandwidth")):
        text = (tmp_path / f"{hosts}.yaml").read_text()
        values = yaml.safe_load(text)
        assert set(values) == {"ddr_bandwidth", network}
        assert all(math.isfinite(value) and value > 0 for value in values.values())
        config = load_config(tmp_path / "experiment.yaml", [f"sharding.cluster={text}"])
        assert config.sharding.cluster == ClusterConfig(**values)


def test_one_bandwidth_stands_for_what_both_plans_send() -> None:
    took = {"all-to-all": 1.0, "reduce-scatter": 4.0, "all-gather": 2.0, "all-reduce": 100.0}
    measured = [Measurement(what, "", 1e9, seconds) for what, seconds in took.items()]
    # Table-wise two all-to-all, row-wise the other two: 4 GB in 8 seconds.
    assert _bandwidth(measured) == pytest.approx(0.5)


def test_embedding_size_must_be_what_the_kernels_take() -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        app(["calibrate", "--embedding-dim", "6"], standalone_mode=False)
