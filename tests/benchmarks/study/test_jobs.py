"""Runs of a study side by side: logs, failures, and what signals make of them."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cetnet.benchmarks.study.jobs import Train
from cetnet.benchmarks.study.run import run_study
from cetnet.trainer.console import PlainConsole
from cetnet.trainer.errors import UserError
from tests.benchmarks.study import fake_trainer
from tests.benchmarks.study.studies import Make, calls, run
from tests.paths import ROOT
from tests.waiting import until

SECONDS = 200


def run_beside(path: Path, train: Train = fake_trainer.train) -> str:
    shown = io.StringIO()
    run_study(path, train, jobs=2, console=PlainConsole(file=shown, width=100))
    return shown.getvalue()


def meet_another(arguments: list[str]) -> None:
    """Train once another run of the same seed is under way, and with it no third one."""
    seed = next(each for each in arguments if each.startswith("training.seed="))
    Path(f"began.{seed}.{os.getpid()}").touch()
    print(f"waiting for another of {seed}", file=sys.stderr)
    until(lambda: len(list(Path().glob(f"began.{seed}.*"))) == 2, "another run")
    assert len(list(Path().glob("began.*"))) - len(list(Path().glob("ended.*"))) <= 2
    try:
        fake_trainer.train(arguments)
    finally:
        Path(f"ended.{os.getpid()}").touch()


def test_so_many_runs_are_under_way_as_are_asked_for_and_the_report_is_the_same(make: Make) -> None:
    path = make()
    run(path)
    alone = Path("runs/small/table.csv").read_text(encoding="utf-8")
    one_by_one = calls()
    Path("runs/small").rename("alone")
    shown = run_beside(path, meet_another)
    assert sorted(calls()) == sorted(one_by_one)
    assert Path("runs/small/table.csv").read_text(encoding="utf-8") == alone
    assert "run 4 of 4: pair, seed 2: finished in 0:00:" in shown
    assert "NE of test 0." in shown
    logs = [Path(f"runs/small/{variant}/seed{seed}.log") for variant in ("single", "pair") for seed in (1, 2)]
    assert [log.read_text(encoding="utf-8") for log in logs] == [
        f"waiting for another of training.seed={seed}\n" for _ in range(2) for seed in (1, 2)
    ]
    assert "run 4 of 4: pair, seed 2: finished before" in run_beside(path)
    assert calls() == []


def fail_aloud(arguments: list[str]) -> None:
    if "fail=true" in arguments:
        print("cetnet: there is a reason", file=sys.stderr)
    fake_trainer.train(arguments)


def test_the_others_train_though_one_fails(make: Make) -> None:
    path = make(variants={"single": {}, "bad": {"fail": True}})
    message = (
        r"^study small: run bad, seed \d failed \(exit code 3: cetnet: there is a reason; its log is "
        r"runs/small/bad/seed\d\.log, .* \(and 1 more, as said above\); fix it and start the study again"
    )
    with pytest.raises(UserError, match=message):
        run_beside(path, fail_aloud)
    assert len(calls()) == 4
    assert Path("runs/small/single/seed2/result.json").exists()
    with pytest.raises(UserError, match=r"run bad, seed \d failed"):
        run_beside(path, fail_aloud)
    assert [("--resume" in call, "fail=true" in call) for call in calls()] == [(True, True)] * 2


def need_a_teacher(arguments: list[str]) -> None:
    of_student = [each for each in arguments if each.startswith("training.teacher=")]
    assert all(Path(each.partition("[")[2].rstrip("]"), "result.json").exists() for each in of_student)
    fake_trainer.train(arguments)


def test_students_wait_for_their_teachers(make: Make) -> None:
    student = {"training.teacher": "variant:teacher"}
    variants = {"student": student, "single": {}, "teacher": {}}
    run_beside(make(variants=variants), need_a_teacher)
    assert len(calls()) == 6
    path = make(variants={**variants, "teacher": {"fail": True}}, out="again")
    with pytest.raises(UserError, match=r"run teacher, seed \d failed .* \(and 1 more"):
        run_beside(path, need_a_teacher)
    assert len(calls()) == 4
    assert not Path("again/student/seed1").exists()


STUDY = """
import signal, sys
from pathlib import Path
from cetnet.benchmarks.study.run import run_study
from tests.benchmarks.study.test_jobs import end_as_told
signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever started the tests may ignore
run_study(Path("study.yaml"), end_as_told, jobs=2)
"""


def end_as_told(arguments: list[str]) -> None:
    """Wait until SIGTERM; then leave a file, as a checkpoint, and exit code 75."""
    name = next(each for each in arguments if each.startswith("run_dir=")).replace("/", "_")
    signal.signal(signal.SIGTERM, lambda *_: (Path(f"saved.{name}").touch(), os._exit(os.EX_TEMPFAIL)))
    Path(f"ready.{name}").touch()
    time.sleep(SECONDS)


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGKILL])
def test_told_to_stop_or_killed_its_runs_write_checkpoints_and_end(make: Make, told: signal.Signals) -> None:
    make()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", STUDY], env=environment) as study:
        try:
            until(lambda: study.poll() is not None or len(list(Path().glob("ready.*"))) == 2, "two runs")
            assert study.poll() is None
            os.kill(study.pid, told)
            code = study.wait(SECONDS)
        finally:
            study.kill()
    assert code == (-signal.SIGKILL if told == signal.SIGKILL else os.EX_TEMPFAIL)
    until(lambda: len(list(Path().glob("saved.*"))) == 2, "two checkpoints")
    assert len(list(Path().glob("ready.*"))) == 2  # no further one was begun
