"""Verdicts on gains, and what a study would still train for."""

import csv
import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cetnet.benchmarks.study.definition import Run, Study, Until, runs_of
from cetnet.benchmarks.study.report.bootstrap import Baseline
from cetnet.benchmarks.study.report.comparisons import compare, pairing, undecided
from cetnet.benchmarks.study.report.intervals import Estimate
from cetnet.benchmarks.study.run import report_study
from cetnet.trainer.console import PlainConsole
from tests.benchmarks.study.fake_trainer import write_run
from tests.benchmarks.study.studies import Make


def estimate(point: float, deviation: float, seeds: int = 5, data: float = 0.0) -> Estimate:
    pattern = np.linspace(-1, 1, seeds)
    spread = pattern.std(ddof=1) if seeds > 1 else 1
    return Estimate(point, point + deviation * pattern / spread, data, data)


def verdicts(**estimates: Estimate) -> dict[str, str]:
    return {name: found.verdict for name, found in compare(estimates, Until(half_width=0.2)).items()}


def test_verdicts_in_words() -> None:
    assert verdicts(
        better=estimate(-0.5, 0.1),
        worse=estimate(2.0, 0.1),
        equal=estimate(-0.02, 0.1),
        two=estimate(-5, 0.01, seeds=2),
        one=estimate(-5, 0.01, seeds=1),
        rows=estimate(0.1, 0.3, data=0.234),
        unknown=Estimate(math.nan, np.full(3, math.nan)),
    ) == {
        "better": "better",
        "worse": "worse",
        "equal": "equal within ±0.15 %",  # 0.02 + 2.776 * 0.1 / 5 ** 0.5 = 0.1442
        "two": "undecided: at least 1 more seed",
        "one": "undecided: at least 2 more seeds",
        "rows": "undecided: the rows alone leave ±0.24 %",
        "unknown": "",
    }


def test_more_seeds_are_those_after_which_the_interval_is_narrow() -> None:
    # Of 0.3 * 2.201 / 12 ** 0.5 = 0.191 the first below 0.2; with 11 seeds it is 0.2015.
    assert verdicts(a=estimate(0.1, 0.3)) == {"a": "undecided: 7 more seeds"}


def test_of_many_comparisons_one_is_off_by_chance() -> None:
    alone = estimate(-0.31, 0.2)
    assert alone.interval.high < 0
    assert verdicts(a=alone) == {"a": "better"}
    several = verdicts(a=alone, **{f"b{i}": estimate(0.0, 1) for i in range(5)})
    assert several["a"] == "perhaps better: one of many"


def test_pairing_is_what_it_saves() -> None:
    base, new = {1: 1.0, 2: 1.2, 3: 1.1, 9: 5.0}, {3: 1.15, 2: 1.25, 1: 1.0}
    found = pairing(new, base)
    assert found
    pairs = np.array([[new[s], base[s]] for s in (1, 2, 3)])
    assert found.correlation == pytest.approx(np.corrcoef(pairs.T)[0, 1])
    assert found.saved == pytest.approx(
        1 - np.var(pairs[:, 0] - pairs[:, 1], ddof=1) / pairs.var(axis=0, ddof=1).sum()
    )
    assert pairing({1: 1.0, 2: 1.2}, base) is None
    assert pairing(dict.fromkeys((1, 2, 3), 0.5), base) is None


def finished(path: Path) -> list[Run]:
    """The runs of a study, all of them finished; a variant's `skill` is a key of its own."""
    study = Study.load(path)
    runs = runs_of(study, path)
    for run in runs:
        if not run.finished:
            run.write_settings()
            (run.folder / "predictions").mkdir(parents=True)
            (run.folder / "config.yaml").write_text("data: {order: sequential}", encoding="utf-8")
            skill = study.variants[run.variant].get("skill", 0.5)
            write_run(run.folder, seed=run.seed, skill=skill, components=["solo"], truth=False, data_seed=0)
    return runs


def gain_of(path: Path, new: str, base: str) -> Estimate:
    study = Study.load(path)

    def files(variant: str) -> dict[int, Path]:
        return {s: study.folder / variant / f"seed{s}/predictions/test.parquet" for s in study.seeds}

    gains = Baseline(files(base), study.looks).gains(files(new))
    assert gains
    return gains.ne


def test_undecided_are_those_that_seeds_would_decide(make: Make) -> None:
    changes: dict[str, Any] = {"seeds": [1, 2, 3], "variants": {"single": {}, "other": {"skill": 0.55}}}

    def left(half_width: float, runs: list[Run] | None = None) -> dict[str, float]:
        path = make(**changes, until={"half_width": half_width, "max_seeds": 60})
        return undecided(Study.load(path), finished(path) if runs is None else runs)

    runs = finished(make(**changes, until={"half_width": 1.0, "max_seeds": 60}))
    gain = gain_of(Path("study.yaml"), "other", "single")
    half = gain.interval.half
    assert abs(gain.point) / 5 < gain.data < 0.9 * half
    assert left(1.01 * half) == {}
    assert left(0.99 * half) == {"other": half}
    assert left((gain.data + half) / 2) == {"other": half}
    assert left(0.99 * gain.data) == {}  # no number of seeds is enough
    assert left(0.5, [run for run in runs if run.seed < 3]) == {"other": math.inf}
    (runs[0].folder / "result.json").unlink()
    assert left(0.5, runs) == {"other": math.inf}


def test_of_a_large_gain_a_fifth_decides() -> None:
    until = Until(half_width=0.2)
    assert [until.wide_enough(gain) for gain in (0, 0.9, -3)] == pytest.approx([0.2, 0.2, 0.6])


def test_methods_of_scaling_are_undecided_together(make: Make) -> None:
    path = make(
        seeds=[1, 2],
        variants={"single": {}, "wide": {}, "copies": {"skill": 0.6}},
        scaling={"SE": "wide", "copies": "copies"},
        until={"half_width": 0.2, "max_seeds": 9, "monitor": "progressive"},
    )
    runs = finished(path)
    assert undecided(Study.load(path), runs) == {"wide": math.inf, "copies": math.inf}


def test_looks_are_after_each_pair_of_seeds(make: Make) -> None:
    def looks(**changes: Any) -> tuple[int, ...]:
        return Study.load(make(**changes)).looks

    assert looks() == ()
    assert looks(seeds=[1, 2, 3], until={"max_seeds": 8}) == (3, 5, 7, 8)
    assert looks(seeds=[1, 2], until={"max_seeds": 6}) == (4, 6)
    assert looks(seeds=[1, 2, 3], until={"max_seeds": 3}) == (3,)


def test_undecided_needs_no_plots() -> None:
    """It is called between the runs, by a process that others are forked from."""
    import subprocess

    code = "import sys, cetnet.benchmarks.study.report.comparisons; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "torch"} & set(loaded.stdout.split())


def test_a_report_that_says_how_sure_it_is(make: Make) -> None:
    path = make(
        seeds=[1, 2, 3, 4],
        variants={"single": {}, "poor": {"skill": 0.05}, "same": {"skill": 0.5}},
        until={"half_width": 0.3, "max_seeds": 8},
    )
    Path("base.yaml").write_text(yaml.safe_dump({"skill": 0.5}), encoding="utf-8")
    runs = finished(path)
    report_study(path, console=PlainConsole(file=io.StringIO()))
    report = Path("runs/small/report.md").read_text(encoding="utf-8")
    with Path("runs/small/table.csv").open(encoding="utf-8") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["single", "poor", "same", "A/A: single"]
    assert rows["same"]["verdict"] == "equal within ±0 %"
    assert rows["poor"]["verdict"] == "worse"
    assert rows["A/A: single"]["verdict"] == "not told apart"
    for name in ("calibrated NE", "progressive NE", "last-window NE"):
        assert float(rows["poor"][name]) > 0
        assert float(rows["same"][f"{name} gain (%)"]) == 0
    assert float(rows["poor"]["multiply-adds a row"]) == 200_000
    assert float(rows["poor"]["seconds a million rows"]) == pytest.approx(1e8 / 4_096_000)
    assert "at 4, 6, 8 seeds" in report
    assert "How sure that is:" in report
    assert "*A/A*: every second seed is told from the others of 0 of 3 models" in report
    assert Path("runs/small/forest.png").exists()
    assert len(runs) == 12
