"""What a study trains, and how it starts, resumes and ends its runs."""

import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cetnet.benchmarks.study.definition import Study, runs_of
from cetnet.benchmarks.study.run import report_study, run_study
from cetnet.trainer.console import PlainConsole
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import locked
from cetnet.trainer.run_folder import LOCK
from tests.benchmarks.study import fake_trainer
from tests.benchmarks.study.studies import PNG, Make, calls, run


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
    report = Path("runs/small/report.md").read_text(encoding="utf-8")
    assert re.search(r"\| variant \| seeds \| NE ", report)
    assert re.search(r"\| single \| 3 \| [\d.]+ ± ", report)
    assert re.search(r"\| third \| 1 \| [\d.]+ \|", report)
    assert re.search(r"\| pair \| 3 \| \**[+-][\d.]+\** \[", report)
    assert re.search(r"\| third \| 1 \| [+-][\d.]+ \[", report)  # of one seed: not bold, however large
    assert "of one the spread between seeds is not in the interval" in report
    # Gains are over the seeds that both have.
    with Path("runs/small/table.csv").open(encoding="utf-8") as file:
        third = {row["variant"]: row for row in csv.DictReader(file)}["third"]
    run(make(seeds=[1], variants=variants))
    with Path("runs/small/table.csv").open(encoding="utf-8") as file:
        assert {row["variant"]: row for row in csv.DictReader(file)}["third"] == third


def test_seeds_are_added_in_pairs_until_gains_are_known_well_enough(make: Make) -> None:
    variants = {"single": {}, "same": {}, "pair": {"components": ["left", "right"]}, "third": {"skill": 0.4}}
    study = {
        "seeds": [3, 5, 6],
        "variants": variants,
        "until": {"half_width": 0.1, "max_seeds": 9},
    }
    path = make(**study)
    shown = run(path)
    finished = {
        name: sorted(path.parent.name for path in Path("runs/small", name).glob("*/result.json"))
        for name in variants
    }
    # `same` is the baseline itself, whose gain is exactly 0 and known from the first.
    assert finished["same"] == ["seed3", "seed5", "seed6"]
    assert (
        finished["pair"]
        == finished["single"]
        == ["seed10", "seed3", "seed5", "seed6", "seed7", "seed8", "seed9"]
    )
    assert re.search(r"within ±0.1 % of ne: not yet .*pair ±\d", shown)
    assert shown.count("not yet") == 2  # after 3 and 5 seeds, but not after 7
    assert "within ±0.1 % of ne: all" in shown
    calls()
    # Reported, and gone on with, as if all these seeds had been in the file.
    report_study(path, console=PlainConsole(file=io.StringIO()))
    first = Path("runs/small/table.csv").read_text(encoding="utf-8")
    shutil.rmtree("runs/small/pair/seed8")
    run(path)
    assert [call[-4:-2] for call in calls()] == [["training.seed=8", "run_dir=runs/small/pair/seed8"]]
    assert Path("runs/small/table.csv").read_text(encoding="utf-8") == first
    run(make(**study | {"until": {"half_width": 50}}))
    assert calls() == []


def test_a_failing_run_is_named(make: Make) -> None:
    path = make(variants={"single": {}, "bad": {"fail": True}})
    with pytest.raises(UserError, match=r"^study small: run bad, seed 1 failed \(exit code 3; .*bad/seed1"):
        run(path)
    assert len(calls()) == 2
    # Half of a study has half of a report.
    report_study(path, console=PlainConsole(file=io.StringIO()))
    report = Path("runs/small/report.md").read_text(encoding="utf-8")
    assert "3 of 4 runs are not finished: bad (seed 1, 2), single (seed 2)." in report
    assert re.search(r"\| single \| \d\.", report)
    Path("runs/small/single/seed1/result.json").unlink()
    with pytest.raises(UserError, match="none of its 4 runs is finished, first runs/small/single/seed1"):
        report_study(path)


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
    Path("base.yaml").write_text("skill: 0.6\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^runs/small/single/seed1: made with other settings"):
        run(path)

    path = make(seeds=[1])
    Path("runs/small/pair/seed1.settings.json").unlink()
    with pytest.raises(UserError, match=r"^runs/small/pair/seed1: not made by this study"):
        run(path)


def test_common_keys_and_variants_of_a_file(make: Make) -> None:
    Path("variants.yaml").write_text(
        "single: {}\npair: {components: [left, right], skill: 0.4}\n", encoding="utf-8"
    )
    run(make(seeds=[1], variants="variants.yaml", common={"skill": 0.6, "extra": 1}))
    assert [call[:-3] for call in calls()] == [
        ["skill=0.6", "extra=1", "training.seed=1"],
        ["skill=0.4", "extra=1", "components=[left, right]", "training.seed=1"],
    ]
    with pytest.raises(UserError, match=r"runs/small/single/seed1: made with other settings"):
        run(make(seeds=[1], variants="variants.yaml", common={"skill": 0.6}))
    with pytest.raises(UserError, match=r"absent\.yaml: no such file"):
        run(make(variants="absent.yaml"))


def test_each_run_has_a_place_of_its_own_for_checkpoints(make: Make) -> None:
    path = make(seeds=[1])
    assert [run.checkpoints for run in runs_of(Study.load(path), path)] == [None, None]
    Path("base.yaml").write_text("checkpoint: {path: 's3://bucket/all'}\n", encoding="utf-8")
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
    Path("base.yaml").write_text("checkpoint: {path: below}\n", encoding="utf-8")
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


def test_does_not_import_torch() -> None:
    code = "import sys, cetnet.benchmarks.study.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_study_at_a_time_trains_in_a_folder(make: Make) -> None:
    path = make(seeds=[1])
    with (
        locked(Path("runs/small"), LOCK, "taken"),
        pytest.raises(UserError, match="another study trains in it"),
    ):
        run(path)
    assert calls() == []
    run(path)
    assert len(calls()) == 2
    assert not (Path("runs/small") / LOCK).exists()


def begin_another_run_and_train(arguments: list[str]) -> None:
    Path("runs/small/pair/seed1").mkdir(parents=True)
    fake_trainer.train(arguments)


def test_a_run_that_somebody_else_began_meanwhile_is_not_gone_on_with(make: Make) -> None:
    path = make(seeds=[1])
    with pytest.raises(UserError, match=r"pair/seed1: not made by this study"):
        run_study(path, begin_another_run_and_train, console=PlainConsole(file=io.StringIO()))


def test_a_base_whose_name_begins_with_a_dash_is_no_option(make: Make) -> None:
    path = make(base="-base.yaml")
    Path("base.yaml").rename("-base.yaml")
    assert {run.arguments[0] for run in runs_of(Study.load(path), path)} == {"./-base.yaml"}
