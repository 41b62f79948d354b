"""Reports of studies that a fake trainer has trained."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from cetnet.benchmarks.study.definition import Study
from cetnet.benchmarks.study.run import report_study
from cetnet.trainer.console import PlainConsole
from cetnet.trainer.errors import UserError
from tests.benchmarks.study.studies import PNG, Make, calls, run


def test_variants_that_are_finished_before_their_baseline_have_no_gains(make: Make) -> None:
    path = make(seeds=[1])
    run(path)
    Path("runs/small/single/seed1/result.json").unlink()
    shown = io.StringIO()
    report_study(path, console=PlainConsole(file=shown, width=100))
    report = Path("runs/small/report.md").read_text(encoding="utf-8")
    assert "1 of 2 runs are not finished: single (seed 1)." in report
    assert re.search(r"\| pair \| \d\.", report)
    assert "NE gain" not in report + shown.getvalue()


def test_report_is_rebuilt_without_training(make: Make) -> None:
    path = make(seeds=[1])
    run(path)
    calls()
    report = Path("runs/small/report.md")
    first = report.read_text(encoding="utf-8")
    report.unlink()
    shown = io.StringIO()
    report_study(path, console=PlainConsole(file=shown, width=100))
    assert report.read_text(encoding="utf-8") == first
    assert calls() == []
    assert "±" not in first.replace("mean ± standard", "")  # one seed has no deviation


def test_report_of_runs_with_sparse_or_repeated_records(make: Make) -> None:
    path = make(seeds=[1])
    run(path)
    log = Path("runs/small/pair/seed1/metrics.jsonl")
    first = json.loads(log.read_text(encoding="utf-8").splitlines()[0])
    unknown = {"ne/window/fused": None, "ne/lifetime/fused": float("nan")}
    log.write_text(
        "".join(json.dumps(record) + "\n" for record in (first, first, first | {"rows": 9} | unknown)),
        encoding="utf-8",
    )
    report_study(path, console=PlainConsole(file=io.StringIO()))
    log.write_text("", encoding="utf-8")  # a run shorter than training.log_every
    report_study(path, console=PlainConsole(file=io.StringIO()))
    log.write_text('{"kind": "tr', encoding="utf-8")
    with pytest.raises(UserError, match=r"pair/seed1/metrics\.jsonl: cannot be read"):
        report_study(path, console=PlainConsole(file=io.StringIO()))


def test_bayes_optimum_is_the_best_row_where_the_truth_is_known(make: Make) -> None:
    path = make(seeds=[1])
    Path("base.yaml").write_text("skill: 0.5\ntruth: true\n", encoding="utf-8")
    run(path)
    with Path("runs/small/table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["variant"] == "Bayes optimum"
    assert all(float(rows[-1]["LogLoss"]) < float(row["LogLoss"]) for row in rows[:-1])
    assert rows[-1]["NE gain (%)"] == rows[-1]["rows/s"] == ""


def test_several_baselines_each_head_their_section(make: Make) -> None:
    variants = {"a": {}, "b": {"skill": 0.7}, "c": {"skill": 0.7}, "d": {"components": ["x", "y"]}}
    path = make(seeds=[1], baseline=["a", "c"], variants=variants, components=False)
    assert Study.load(path).sections == {"a": ["a", "b"], "c": ["c", "d"]}
    shown = run(path)
    assert max(map(len, shown.splitlines())) <= 100
    with Path("runs/small/table.csv").open(encoding="utf-8") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a", "b", "c", "d"]  # d's components are not listed
    for baseline, variant in (("a", "b"), ("c", "d")):
        gain = 100 * (float(rows[variant]["NE"]) / float(rows[baseline]["NE"]) - 1)
        assert float(rows[variant]["NE gain (%)"]) == pytest.approx(gain, rel=1e-4)
        assert rows[baseline]["NE gain (%)"] == ""
        for plot in ("ne_curves", "gain"):
            assert Path(f"runs/small/{plot}_{baseline}.png").read_bytes().startswith(PNG)
    report = Path("runs/small/report.md").read_text(encoding="utf-8")
    assert "each section's baseline (`a`, `c`)" in report
    assert re.findall(r"### Compared with (\w)\n\n.*\n.*\n\| (\w) .*\n\| (\w) ", report) == [
        ("a", "a", "b"),
        ("c", "c", "d"),
    ]


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
    with Path("runs/small/table.csv").open(encoding="utf-8") as file:
        rows = {(row["variant"], row["component"]): row for row in csv.DictReader(file)}
    pair = rows["pair", ""]
    assert [float(pair[f"paper {title}"]) for title in ("AUC", "gAUC", "LogLoss")] == [0.74565, 0.67, 0.4349]
    assert float(pair["paper NE gain (%)"]) == pytest.approx(100 * (0.4349 / 0.4356 - 1))
    assert float(pair["paper AUC gain (pp)"]) == pytest.approx(0.115)
    assert float(pair["paper gAUC gain (pp)"]) == pytest.approx(1)
    assert float(rows["pair", "left"]["paper AUC gain (pp)"]) == pytest.approx(-0.45)
    assert float(rows["third", ""]["paper NE gain (%)"]) == -0.062
    assert rows["single", ""]["paper NE gain (%)"] == rows["pair", "right"]["paper AUC"] == ""

    lines = Path("runs/small/report.md").read_text(encoding="utf-8").splitlines()
    table = next(index for index, line in enumerate(lines) if line.startswith("| variant | NE |"))
    assert "| AUC | paper | gAUC | paper | embedding parameters |" in lines[table]
    assert "| 0.74565 | 0.70000 ± 0.00000 | 0.6700 |" in lines[table + 3]
    assert any(line.endswith("| LogLoss | paper |") for line in lines)
    assert any(line.startswith("| third |") and "| -0.062 |" in line for line in lines)
    assert any("Somebody (2024), table 1" in line for line in lines)
    assert "0.6700" in shown


def test_metrics_that_nobody_knows_have_no_column(make: Make) -> None:
    path = make(seeds=[1])
    run(path)
    for result in Path("runs/small").glob("*/seed1/result.json"):
        result.write_text(re.sub(r'"gauc/\w+": [0-9.]+', '"gauc/none": null', result.read_text()))
    shown = io.StringIO()
    report_study(path, console=PlainConsole(file=shown, width=100))
    assert "| progressive NE | AUC | embedding parameters |" in Path("runs/small/report.md").read_text(
        encoding="utf-8"
    )


def test_runs_on_other_data_are_not_compared(make: Make) -> None:
    with pytest.raises(UserError, match=r"pair/seed1/.*test\.parquet: column 'label' differs"):
        run(make(seeds=[1], variants={"single": {}, "pair": {"data_seed": 1}}))


def test_unknown_split(make: Make) -> None:
    with pytest.raises(UserError, match="not evaluated on split 'valid', only on test"):
        run(make(seeds=[1], split="valid"))


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("result.json", "seconds", "x", "seconds: Input should be a valid number"),
        ("result.json", "rows", None, "rows: is missing"),
        ("result.json", "splits", {"test": {"ne/fused": "low"}}, "splits.test.ne/fused: "),
        ("environment.json", "time", 7.5, "time: "),
        ("environment.json", "versions", None, "versions: is missing"),
    ],
)
def test_files_of_runs_that_somebody_changed(
    file: str, key: str, value: object, said: str, make: Make
) -> None:
    path = make(seeds=[1])
    run(path)
    changed = Path("runs/small/single/seed1", file)
    content = json.loads(changed.read_text(encoding="utf-8"))
    content.pop(key)
    if value is not None:
        content[key] = value
    changed.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(f"single/seed1/{file}: {said}")):
        report_study(path, console=PlainConsole(file=io.StringIO()))


def test_students_have_no_ne_along_training(make: Make) -> None:
    path = make(seeds=[1, 2, 3], variants={"single": {}, "other": {"skill": 0.6}, "student": {"skill": 0.55}})
    run(path)
    before = table()
    for seed in (1, 2, 3):  # of which the fake trainer knows nothing
        config = Path(f"runs/small/student/seed{seed}/config.yaml")
        config.write_text("training: {teacher: {runs: [runs/small/single/seed1]}}", encoding="utf-8")
    report_study(path, console=PlainConsole(file=io.StringIO()))
    after = table()
    assert all(
        after[variant][title] == before[variant][title]
        for variant in before
        for title in before[variant]
        if variant != "student" or not title.startswith(("progressive NE", "last-window NE"))
    )
    for metric in ("progressive NE", "last-window NE"):
        assert before["student"][metric]
        assert before["student"][f"{metric} gain (%)"]
        assert not after["student"][metric]
        assert not after["student"][f"{metric} gain (%)"]
    assert after["student"]["verdict"] == "better"
    report = Path("runs/small/report.md").read_text(encoding="utf-8")
    assert "Students, which learn from teachers: `student`." in report

    # Nothing is told from a student by progressive NE, either.
    report_study(
        make(seeds=[1, 2, 3], variants={"student": {"skill": 0.55}, "single": {}}, baseline="student")
    )
    assert not table()["single"]["progressive NE gain (%)"]
    assert table()["single"]["progressive NE"]


def table() -> dict[str, dict[str, str]]:
    """The rows of table.csv, by variant."""
    with Path("runs/small/table.csv").open(encoding="utf-8") as file:
        return {row["variant"]: row for row in csv.DictReader(file) if not row["component"]}
