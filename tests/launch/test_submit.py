"""A study submitted to Slurm, whose commands are stand-ins that keep a queue in files."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cetnet.benchmarks.study.run import report_study
from cetnet.launch.cli import app
from cetnet.trainer.errors import UserError
from tests.benchmarks.study.fake_trainer import write_run

SBATCH = """#!/bin/bash
job=$(($(ls queue | wc -l) + 1))
cp "${@: -1}" "queue/$job"
echo $job
"""
SACCT = """#!/bin/bash
echo "${@: -1}|train-0|$(cat state)|node1"
"""
SQUEUE = """#!/bin/bash
echo 'slurm_load_jobs error: Invalid job id specified' >&2
exit 1
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str, str], Path]) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .torchxconfig of whoever runs the tests
    (tmp_path / "queue").mkdir()
    program("sbatch", SBATCH)
    program("sacct", SACCT)
    program("squeue", SQUEUE)
    dnn = {"kind": "dnn"}
    base = {"data": {"path": "data"}, "model": {"components": {"solo": dnn}}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    content = {
        "name": "small",
        "base": "base.yaml",
        "nproc": 4,
        "seeds": [1, 2],
        "baseline": "single",
        "variants": {"single": {}, "pair": {"model.components": {"left": dnn, "right": dnn}}},
    }
    Path("study.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Path("study.yaml")


def launch(*arguments: str) -> str:
    command = ["study", "study.yaml", "-s", "slurm", "-cfg", "partition=main,time=60", *arguments]
    result = CliRunner().invoke(app, command)
    if result.exception:
        raise result.exception
    return result.stdout


def test_each_run_is_a_job_that_is_submitted_once(study: Path) -> None:
    assert launch("--dryrun").count("#SBATCH") == 4
    assert not list(Path("queue").iterdir())
    assert not Path("runs").exists()

    launch("--retries", "2", "--cpu", "8")
    jobs = [Path(f"queue/{number}").read_text(encoding="utf-8") for number in range(1, 5)]
    runs = [(variant, seed) for seed in (1, 2) for variant in ("single", "pair")]
    for (variant, seed), job in zip(runs, jobs, strict=True):
        assert f"run_dir=runs/small/{variant}/seed{seed} --resume" in job
        assert "--nproc_per_node 4" in job
        assert re.search(r"#SBATCH.*--partition=main --time=60.*--cpus-per-task=8\n", job)
        assert json.loads(Path(f"runs/small/{variant}/seed{seed}.settings.json").read_text(encoding="utf-8"))
    assert Path("runs/small/pair/seed2.job").read_text(encoding="utf-8") == "slurm://torchx/4\n"

    Path("state").write_text("RUNNING", encoding="utf-8")
    launch()
    assert len(list(Path("queue").iterdir())) == 4

    # Runs 1 and 2 finish, the others fail: those are submitted again.
    for variant in ("single", "pair"):
        finish(variant, 1)
    Path("state").write_text("FAILED", encoding="utf-8")
    launch()
    assert [file.name for file in sorted(Path("queue").iterdir())] == ["1", "2", "3", "4", "5", "6"]
    assert "single/seed2" in Path("queue/5").read_text(encoding="utf-8")
    for variant in ("single", "pair"):
        finish(variant, 2)
    report_study(study)
    assert Path("runs/small/report.md").exists()


def finish(variant: str, seed: int) -> None:
    folder = Path(f"runs/small/{variant}/seed{seed}")
    (folder / "predictions").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    components = ["solo"] if variant == "single" else ["left", "right"]
    write_run(folder, seed=seed, skill=0.5, components=components, truth=False, data_seed=0)


@pytest.mark.usefixtures("study")
def test_a_job_of_unknown_state_is_left_alone(program: Callable[[str, str], Path]) -> None:
    launch()
    for name in ("sacct", "squeue"):
        program(name, "#!/bin/bash\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    assert launch().count("answers: Unable to contact slurm controller") == 4
    assert len(list(Path("queue").iterdir())) == 4


def test_mistakes_leave_nothing_behind(study: Path, program: Callable[[str, str], Path]) -> None:
    program("sbatch", "#!/bin/bash\nexit 1\n")
    with pytest.raises(UserError, match="slurm did not take the job of single, seed 1"):
        launch()
    with pytest.raises(UserError, match="has no option 'partitio'"):
        CliRunner().invoke(
            app, ["study", str(study), "-s", "slurm", "-cfg", "partitio=a"], catch_exceptions=False
        )
    for option in (["-j", "foo"], ["--mount", "foo"]):
        with pytest.raises(UserError, match="slurm: "):
            launch(*option)
    with pytest.raises(UserError, match="local_cwd"):
        CliRunner().invoke(app, ["study", str(study), "-s", "local_cwd"], catch_exceptions=False)
    assert not [path for path in Path().rglob("*") if path.is_file() and path.suffix in (".json", ".job")]
