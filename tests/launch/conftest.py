"""Programs of a cluster, in their simplest form: enough to run what is meant for one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Runs the program on every node, without looking at srun's options but for --export.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    if [[ $1 == --export=ALL,* ]]; then IFS=, read -ra pairs <<<"${1#--export=ALL,}"; export "${pairs[@]}"; fi
    shift
done
[[ -z $FAIL ]] || exit "$FAIL"
code=0
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" & done
for job in $(jobs -p); do wait "$job" || code=1; done
exit $code
"""
SCONTROL = """#!/bin/bash
case $1 in
show) printf 'localhost\\nother\\n' ;;
requeue) echo "requeued $2" ;;
esac
"""
RECORD = """#!/bin/bash
printf '%s\\0' "$VALUE" "$@"
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a program of that name and text into a folder that PATH names first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name: str, text: str) -> Path:
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def slurm(program: Callable[[str, str], Path]) -> dict[str, str]:
    """Environment of a batch script of Slurm in which `torchrun` writes down what it is given."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": RECORD}.items():
        program(name, text)
    return {
        "PATH": os.environ["PATH"],
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }


def recorded(output: bytes) -> tuple[str, list[str]]:
    """VALUE in the environment of a job's torchrun, and the arguments that `cetnet` was given."""
    value, *words = output.decode().split("\0")[:-1]
    return value, words[words.index("cetnet", words.index("-m", 1)) + 1 :]
