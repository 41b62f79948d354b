import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats

from cetnet.benchmarks.study.definition import Study, runs_of
from cetnet.benchmarks.study.run import report_study, run_study
from cetnet.trainer.errors import UserError

FAKE_TRAINER = [sys.executable, str(Path(__file__).with_name("fake_trainer.py"))]
PNG = b"\x89PNG\r\n\x1a\n"

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a study of two variants x two seeds, changed by keywords, into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**changes: Any) -> Path:
        study = {
            "name": "small",
            "base": "base.yaml",
            "nproc": 2,
            "seeds": [1, 2],
            "baseline": "single",
            "variants": {"single": {}, "pair": {"components": ["left", "right"]}},
        } | changes
        (tmp_path / "base.yaml").write_text("skill: 0.5\n")
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        return Path("study.yaml")

    return write


def run(path: Path) -> str:
    """Run with the fake trainer; returns what a terminal of 100 columns shows."""
    shown = io.StringIO()
    run_study(path, command=FAKE_TRAINER, console=Console(file=shown, width=100))
    return shown.getvalue()


def calls() -> list[list[str]]:
    """Arguments of the fake trainer's calls since the last time it was asked."""
    log = Path("calls.txt")
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]


def test_trains_every_variant_with_every_seed_and_reports(make: Make) -> None:
    shown = run(make())
    assert calls() == [
        ["training.seed=1", "run_dir=runs/small/single/seed1", "--nproc", "2"],
        ["components=[left, right]", "training.seed=1", "run_dir=runs/small/pair/seed1", "--nproc", "2"],
        ["training.seed=2", "run_dir=runs/small/single/seed2", "--nproc", "2"],
        ["components=[left, right]", "training.seed=2", "run_dir=runs/small/pair/seed2", "--nproc", "2"],
    ]
    assert "run 4 of 4: pair, seed 2: training" in shown
    assert max(map(len, shown.splitlines())) <= 100

    out = Path("runs/small")
    for name in ("ne_curves.png", "gain.png"):
        assert (out / name).read_bytes().startswith(PNG)
    with (out / "table.csv").open() as file:
        table = {(row["variant"], row["component"]): row for row in csv.DictReader(file)}
    assert list(table) == [("single", ""), ("pair", ""), ("pair", "left"), ("pair", "right")]
    single, pair = table["single", ""], table["pair", ""]
    gain = 100 * (float(pair["NE"]) / float(single["NE"]) - 1)
    assert float(pair["NE gain (%)"]) == pytest.approx(gain, rel=1e-4)
    assert float(pair["NE gain low (%)"]) < gain < float(pair["NE gain high (%)"])
    assert single["NE gain (%)"] == ""
    assert float(single["AUC"]) == pytest.approx(0.7515)
    assert float(single["AUC std"]) == pytest.approx(0.001 / 2**0.5)
    assert pair["dense parameters"] == str(2 * 234_567)
    assert float(pair["NE"]) < float(table["pair", "left"]["NE"])

    # Both variants are worth the same to the fake trainer, but for what is in their predictions.
    assert float(pair["AUC gain low (pp)"]) < float(pair["AUC gain (pp)"]) < float(pair["AUC gain high (pp)"])
    assert float(table["pair", "left"]["gAUC gain (pp)"]) == pytest.approx(0)  # the same model as `single`

    report = (out / "report.md").read_text()
    assert re.search(rf"\| \**{re.escape(f'{gain:+.3f}')}\** \[", report)
    assert "the spread between seeds" in report
    assert "| 0.75150 ± 0.00071 |" in report
    assert "| &emsp;left |" in report
    assert "cetnet train base.yaml 'components=[left, right]' training.seed=1" in report
    assert "Bayes" not in report
    assert str(Path.cwd()) not in report


def test_runs_only_what_is_missing_and_resumes_what_was_cut_short(make: Make) -> None:
    path = make(seeds=[1])
    run(path)
    calls()
    assert "run 2 of 2: pair, seed 1: finished before" in run(path)
    assert calls() == []

    Path("runs/small/pair/seed1/result.json").unlink()
    # Neither a new title, nor more seeds, nor another number of processes makes finished runs invalid.
    run(make(seeds=[1, 2], nproc=1, title="More seeds"))
    assert [call[call.index("--nproc") - 1 :] for call in calls()] == [
        ["run_dir=runs/small/pair/seed1", "--nproc", "1", "--resume"],
        ["run_dir=runs/small/single/seed2", "--nproc", "1"],
        ["run_dir=runs/small/pair/seed2", "--nproc", "1"],
    ]


def test_more_seeds_of_some_variants(make: Make) -> None:
    variants = {"single": {}, "pair": {"components": ["left", "right"]}, "third": {"skill": 0.4}}
    path = make(seeds=[1], more_seeds={"seeds": [5, 3], "variants": ["single", "p*"]}, variants=variants)
    run(path)
    seeds = [re.findall(r"run_dir=runs/small/(\w+)/seed(\d)", " ".join(call))[0] for call in calls()]
    assert seeds == [
        *[("single", "1"), ("pair", "1"), ("third", "1")],
        *[("single", "5"), ("pair", "5"), ("single", "3"), ("pair", "3")],
    ]
    report = Path("runs/small/report.md").read_text()
    assert re.search(r"\| variant \| seeds \| NE ", report)
    assert re.search(r"\| single \| 3 \| [\d.]+ ± ", report)
    assert re.search(r"\| third \| 1 \| [\d.]+ \|", report)
    assert re.search(r"\| pair \| 3 \| \**[+-][\d.]+\** \[", report)
    assert re.search(r"\| third \| 1 \| [+-][\d.]+ \[", report)  # of one seed: not bold, however large
    assert "A gain over one seed lacks the spread between seeds" in report
    # Gains are over the seeds that both have.
    with Path("runs/small/table.csv").open() as file:
        third = {row["variant"]: row for row in csv.DictReader(file)}["third"]
    run(make(seeds=[1], variants=variants))
    with Path("runs/small/table.csv").open() as file:
        assert {row["variant"]: row for row in csv.DictReader(file)}["third"] == third


def test_a_failing_run_is_named(make: Make) -> None:
    path = make(variants={"single": {}, "bad": {"fail": True}})
    with pytest.raises(UserError, match=r"^study small: run bad, seed 1 failed \(exit code 3; .*bad/seed1"):
        run(path)
    assert len(calls()) == 2
    # Half of a study has half of a report.
    report_study(path, console=Console(file=io.StringIO()))
    report = Path("runs/small/report.md").read_text()
    assert "3 of 4 runs are not finished: bad (seed 1, 2), single (seed 2)." in report
    assert re.search(r"\| single \| \d\.", report)
    Path("runs/small/single/seed1/result.json").unlink()
    with pytest.raises(UserError, match="none of its 4 runs is finished, first runs/small/single/seed1"):
        report_study(path)


def test_variants_that_are_finished_before_their_baseline_have_no_gains(make: Make) -> None:
    path = make(seeds=[1])
    run(path)
    Path("runs/small/single/seed1/result.json").unlink()
    shown = io.StringIO()
    report_study(path, console=Console(file=shown, width=100))
    report = Path("runs/small/report.md").read_text()
    assert "1 of 2 runs are not finished: single (seed 1)." in report
    assert re.search(r"\| pair \| \d\.", report)
    assert "NE gain" not in report + shown.getvalue()


def test_refuses_runs_made_with_other_settings(make: Make) -> None:
    run(make(seeds=[1]))
    changed = make(seeds=[1], variants={"single": {}, "pair": {"components": ["left", "middle"]}})
    for action in (run, report_study):
        with pytest.raises(
            UserError, match=r"^runs/small/pair/seed1: made with other settings .*delete"
        ) as raised:
            action(changed)
        assert "\n" not in str(raised.value)

    path = make(seeds=[1])
    Path("base.yaml").write_text("skill: 0.6\n")
    with pytest.raises(UserError, match=r"^runs/small/single/seed1: made with other settings"):
        run(path)

    path = make(seeds=[1])
    Path("runs/small/pair/seed1.settings.json").unlink()
    with pytest.raises(UserError, match=r"^runs/small/pair/seed1: not made by this study"):
        run(path)


def test_report_is_rebuilt_without_training(make: Make) -> None:
    path = make(seeds=[1])
    run(path)
    calls()
    report = Path("runs/small/report.md")
    first = report.read_text()
    report.unlink()
    shown = io.StringIO()
    report_study(path, console=Console(file=shown, width=100))
    assert report.read_text() == first
    assert calls() == []
    assert "±" not in first.replace("mean ± standard", "")  # one seed has no deviation


def test_report_of_runs_with_sparse_or_repeated_records(make: Make) -> None:
    path = make(seeds=[1])
    run(path)
    log = Path("runs/small/pair/seed1/metrics.jsonl")
    first = json.loads(log.read_text().splitlines()[0])
    unknown = {"ne/window/fused": None, "ne/lifetime/fused": float("nan")}
    log.write_text(
        "".join(json.dumps(record) + "\n" for record in (first, first, first | {"rows": 9} | unknown))
    )
    report_study(path, console=Console(file=io.StringIO()))
    log.write_text("")  # a run shorter than training.log_every
    report_study(path, console=Console(file=io.StringIO()))
    log.write_text('{"kind": "tr')
    with pytest.raises(UserError, match=r"pair/seed1/metrics\.jsonl: cannot be read"):
        report_study(path, console=Console(file=io.StringIO()))


def test_bayes_optimum_is_the_best_row_where_the_truth_is_known(make: Make) -> None:
    path = make(seeds=[1])
    Path("base.yaml").write_text("skill: 0.5\ntruth: true\n")
    run(path)
    with Path("runs/small/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["variant"] == "Bayes optimum"
    assert all(float(rows[-1]["LogLoss"]) < float(row["LogLoss"]) for row in rows[:-1])
    assert rows[-1]["NE gain (%)"] == rows[-1]["rows/s"] == ""


def test_common_keys_and_variants_of_a_file(make: Make) -> None:
    Path("variants.yaml").write_text("single: {}\npair: {components: [left, right], skill: 0.4}\n")
    run(make(seeds=[1], variants="variants.yaml", common={"skill": 0.6, "extra": 1}))
    assert [call[:-3] for call in calls()] == [
        ["skill=0.6", "extra=1", "training.seed=1"],
        ["skill=0.4", "extra=1", "components=[left, right]", "training.seed=1"],
    ]
    with pytest.raises(UserError, match=r"runs/small/single/seed1: made with other settings"):
        run(make(seeds=[1], variants="variants.yaml", common={"skill": 0.6}))
    with pytest.raises(UserError, match=r"absent\.yaml: cannot be read"):
        run(make(variants="absent.yaml"))


def test_each_run_has_a_place_of_its_own_for_checkpoints(make: Make) -> None:
    path = make(seeds=[1])
    assert [run.checkpoints for run in runs_of(Study.load(path), path)] == [None, None]
    Path("base.yaml").write_text("checkpoint: {path: 's3://bucket/all'}\n")
    runs = runs_of(Study.load(path), path)
    assert [run.checkpoints for run in runs] == ["s3://bucket/all/single/seed1", "s3://bucket/all/pair/seed1"]
    assert all(f"checkpoint.path={run.checkpoints}" in run.arguments for run in runs)

    # Whichever way it is set, the last one holds.
    variants = {
        "single": {"checkpoint": {"path": "kept"}},
        "pair": {"checkpoint.path": None},
        "third": {"checkpoint": {"keep": 1}},
    }
    path = make(seeds=[1], common={"checkpoint.path": "all"}, variants=variants)
    Path("base.yaml").write_text("checkpoint: {path: below}\n")
    runs = runs_of(Study.load(path), path)
    assert [run.checkpoints for run in runs] == ["kept/single/seed1", None, None]
    assert runs[0].overrides[-2:] == ["checkpoint.path=kept/single/seed1", "run_dir=runs/small/single/seed1"]
    assert "checkpoint.path=null" in runs[1].overrides

    runs[0].folder.mkdir(parents=True)
    runs[0].settings_file.write_text("{}")
    with pytest.raises(
        UserError, match="delete the folder and its checkpoints in kept/single/seed1 to repeat"
    ):
        run(path)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("", "base.yaml: a mapping of keys to values is expected"),
        ("[1]", "base.yaml: a mapping of keys to values is expected"),
        ("checkpoint: 5", "base.yaml: checkpoint: a mapping is expected"),
        ("checkpoint: {path: [a]}", "base.yaml: checkpoint.path: text is expected"),
    ],
)
def test_bad_base_files(make: Make, base: str, message: str) -> None:
    path = make()
    Path("base.yaml").write_text(base)
    with pytest.raises(UserError, match=re.escape(message)):
        run(path)


def test_several_baselines_each_head_their_section(make: Make) -> None:
    variants = {"a": {}, "b": {"skill": 0.7}, "c": {"skill": 0.7}, "d": {"components": ["x", "y"]}}
    path = make(seeds=[1], baseline=["a", "c"], variants=variants, components=False)
    assert Study.load(path).sections == {"a": ["a", "b"], "c": ["c", "d"]}
    shown = run(path)
    assert max(map(len, shown.splitlines())) <= 100
    with Path("runs/small/table.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a", "b", "c", "d"]  # d's components are not listed
    for baseline, variant in (("a", "b"), ("c", "d")):
        gain = 100 * (float(rows[variant]["NE"]) / float(rows[baseline]["NE"]) - 1)
        assert float(rows[variant]["NE gain (%)"]) == pytest.approx(gain, rel=1e-4)
        assert rows[baseline]["NE gain (%)"] == ""
        for plot in ("ne_curves", "gain"):
            assert Path(f"runs/small/{plot}_{baseline}.png").read_bytes().startswith(PNG)
    report = Path("runs/small/report.md").read_text()
    assert "each section's baseline (`a`, `c`)" in report
    assert re.findall(r"### Compared with (\w)\n\n.*\n.*\n\| (\w) .*\n\| (\w) ", report) == [
        ("a", "a", "b"),
        ("c", "c", "d"),
    ]


def test_gains_since_the_start_of_training_have_an_interval_over_the_seeds(make: Make) -> None:
    path = make(seeds=[1, 2, 3], variants={"single": {}, "pair": {"components": ["left", "right"]}})
    run(path)
    ends = {}
    for variant in ("single", "pair"):
        for seed in (1, 2, 3):
            lines = Path(f"runs/small/{variant}/seed{seed}/metrics.jsonl").read_text().splitlines()
            train = [json.loads(line) for line in lines if '"train"' in line]
            ends[variant, seed] = train[-1]["ne/lifetime/fused"]
    gains = [100 * (ends["pair", seed] / ends["single", seed] - 1) for seed in (1, 2, 3)]
    low, high = stats.t.interval(0.95, 2, np.mean(gains), stats.sem(gains))
    report = Path("runs/small/report.md").read_text()
    line = re.search(
        r"NE since the start \| NE gain since.*\n.*\n\| single .*\| – \|\n\| pair (.*)\n", report
    )
    assert line
    numbers = [float(number) for number in re.findall(r"[+-]\d+\.\d+", line[1])]
    assert numbers == pytest.approx([np.mean(gains), low, high], abs=0.02)


def test_gains_since_the_start_are_of_the_seeds_that_the_baseline_has(make: Make) -> None:
    path = make(
        seeds=[1],
        more_seeds={"seeds": [2, 3], "variants": ["pair", "third"]},
        variants={"single": {}, "pair": {"components": ["left", "right"]}, "third": {}},
    )
    run(path)
    records = {
        variant: Path(f"runs/small/{variant}/seed1/metrics.jsonl").read_text().splitlines()
        for variant in ("single", "pair")
    }
    ends = {
        variant: [json.loads(line) for line in lines if '"train"' in line][-1]["ne/lifetime/fused"]
        for variant, lines in records.items()
    }
    report = Path("runs/small/report.md").read_text()
    gain = 100 * (ends["pair"] / ends["single"] - 1)
    assert f"| single | 1 | 4,096,000 | {ends['single']:.5f} | – |" in report
    assert f"| pair | 1 | 4,096,000 | {ends['pair']:.5f} | {gain:+.3f} |" in report


def test_published_numbers_stand_beside_ours(make: Make) -> None:
    paper = {
        "source": "Somebody (2024), table 1",
        "numbers": {
            "single": {"gauc": 0.66, "auc": 0.7445, "logloss": 0.4356},
            "pair": {"gauc": 0.67, "auc": 0.74565, "logloss": 0.4349},
            "pair/left": {"auc": 0.7400},
            "third": {"ne_gain": -0.062},
        },
    }
    variants = {"single": {}, "pair": {"components": ["left", "right"]}, "third": {}}
    shown = run(make(variants=variants, paper=paper))
    assert max(map(len, shown.splitlines())) <= 100
    with Path("runs/small/table.csv").open() as file:
        rows = {(row["variant"], row["component"]): row for row in csv.DictReader(file)}
    pair = rows["pair", ""]
    assert [float(pair[f"paper {title}"]) for title in ("AUC", "gAUC", "LogLoss")] == [0.74565, 0.67, 0.4349]
    assert float(pair["paper NE gain (%)"]) == pytest.approx(100 * (0.4349 / 0.4356 - 1))
    assert float(pair["paper AUC gain (pp)"]) == pytest.approx(0.115)
    assert float(pair["paper gAUC gain (pp)"]) == pytest.approx(1)
    assert float(rows["pair", "left"]["paper AUC gain (pp)"]) == pytest.approx(-0.45)
    assert float(rows["third", ""]["paper NE gain (%)"]) == -0.062
    assert rows["single", ""]["paper NE gain (%)"] == rows["pair", "right"]["paper AUC"] == ""

    lines = Path("runs/small/report.md").read_text().splitlines()
    table = next(index for index, line in enumerate(lines) if line.startswith("| variant | NE |"))
    assert "| AUC | paper | gAUC | paper | LogLoss | paper | embedding parameters |" in lines[table]
    assert "| 0.74565 | 0.70000 ± 0.00000 | 0.6700 |" in lines[table + 3]
    assert any(line.startswith("| third |") and "| -0.062 |" in line for line in lines)
    assert any("Somebody (2024), table 1" in line for line in lines)
    assert "0.6700" in shown


def test_metrics_that_nobody_knows_have_no_column(make: Make) -> None:
    path = make(seeds=[1])
    run(path)
    for result in Path("runs/small").glob("*/seed1/result.json"):
        result.write_text(re.sub(r'"gauc/\w+": [0-9.]+', '"gauc/none": null', result.read_text()))
    shown = io.StringIO()
    report_study(path, console=Console(file=shown, width=100))
    assert "| AUC | LogLoss |" in Path("runs/small/report.md").read_text()


def test_values_reach_the_trainer_as_they_were_written(make: Make) -> None:
    values = {
        "a.components": {"z": {"kind": "z", "layers": [1, 2]}, "a": {"rate": 1e-5}},
        "a.rate": 1e-05,
        "a.text": "it's: [odd] #" + "long " * 50,
        "a.digits": "007",
        "a.nothing": None,
        "a.flag": False,
    }
    run(make(seeds=[1], variants={"single": values}))
    (arguments,) = calls()
    received = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in arguments[:-3])}
    assert received == values | {"training.seed": 1}
    assert list(received["a.components"]) == ["z", "a"]


def test_runs_on_other_data_are_not_compared(make: Make) -> None:
    with pytest.raises(UserError, match=r"pair/seed1/.*test\.parquet: column 'label' differs"):
        run(make(seeds=[1], variants={"single": {}, "pair": {"data_seed": 1}}))


def test_unknown_split(make: Make) -> None:
    with pytest.raises(UserError, match="not evaluated on split 'valid', only on test"):
        run(make(seeds=[1], split="valid"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "sedes: Extra inputs are not permitted"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, 1]}, "seeds [1, 1] has a seed twice"),
        ({"more_seeds": {"seeds": [2], "variants": ["pair"]}}, "seeds [1, 2, 2] has a seed twice"),
        (
            {"more_seeds": {"seeds": [3], "variants": ["pair", "dubl*"]}},
            "more_seeds.variants: 'dubl*' is none of the variants single, pair",
        ),
        ({"baseline": "double"}, "baseline 'double' is not one of the variants single, pair"),
        ({"variants": {"single": {"run_dir": "x"}}}, "'single' sets 'run_dir', which the study sets"),
        ({"variants": {"single": {}, "../up": {}}}, "variants.../up"),
        ({"baseline": ["single", "double"]}, "baseline 'double' is not one of the variants single, pair"),
        ({"baseline": ["pair", "single"]}, "with several baselines, the first variant must be one"),
        ({"common": {"training.seed": 1}}, "'common' sets 'training.seed', which the study sets"),
        (
            {"paper": {"source": "x", "numbers": {"double": {"auc": 0.5}}}},
            "paper.numbers: 'double' is not one of the variants single, pair",
        ),
        (
            {"paper": {"source": "x", "numbers": {"pair": {"acu": 0.5}}}},
            "paper.numbers.pair.acu: Extra inputs",
        ),
        ({"nproc": 0}, "nproc: Input should be greater than 0"),
        ({"base": "absent.yaml"}, "absent.yaml: cannot be read: No such file"),
    ],
)
def test_bad_study_files(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        run(make(**changes))
    assert "\n" not in str(raised.value)
    assert calls() == []


@pytest.mark.parametrize("text", ["name: [", "", "- a list"])
def test_files_that_are_no_study(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path))) as raised:
        run_study(path)
    assert "\n" not in str(raised.value)


def test_study_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"absent\.yaml: cannot be read"):
        run_study(Path("absent.yaml"))


def test_does_not_import_torch() -> None:
    code = "import sys, cetnet.benchmarks.study.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
