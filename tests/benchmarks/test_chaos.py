"""The chaos benchmark: a fault of three kinds, on one process."""

from pathlib import Path

from cetnet.benchmarks.chaos.__main__ import run_chaos


def test_a_run_under_faults_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    faults = ["SIGTERM", "full disk", "kill -9 of the job"]
    run, total, verdicts = run_chaos(tmp_path / "chaos", faults, seed=3, nproc=1, elastic=False)
    assert run.attempts == 4
    assert run.trained > total
    assert len(verdicts) == 4
    assert [verdict for verdict in verdicts if not verdict.holds] == []
