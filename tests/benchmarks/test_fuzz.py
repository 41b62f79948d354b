"""A sample of the fuzzer's commands, none of which fails; and what it would call a failure."""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cetnet.benchmarks.fuzz.checks import predicted, same_as_csv, same_as_parquet
from cetnet.benchmarks.fuzz.clicks import SCHEMA, SPLITS, Dialect, csv_bytes, rows, table, write_yaml
from cetnet.benchmarks.fuzz.command import Command, Ended
from cetnet.benchmarks.fuzz.judge import failures_of_end
from cetnet.trainer.prepare.engine.tabular import prepare_tabular

TRACEBACK = """Traceback (most recent call last):
  File "/lib/python3.11/site-packages/cetnet/trainer/files.py", line 35, in write_text
    aside.write_text(text)
  File "/usr/lib/python3.11/pathlib.py", line 1078, in write_text
OSError: [Errno 28] No space left on device: '/data/3/x'
"""


def ended(code: int, stderr: str = "", hung: bool = False, left: tuple[str, ...] = ()) -> Ended:
    return Ended(code, "", stderr, 1.0, hung, None, list(left))


@pytest.mark.parametrize(
    ("end", "kinds"),
    [
        (ended(0), []),
        (ended(0, "Exception ignored in: <_io.TextIOWrapper name='<stdout>'>\n"), ["exception ignored"]),
        (ended(1, TRACEBACK), ["traceback"]),
        (ended(1, "cetnet: something\n"), ["exit code 1"]),
        (ended(75, "stopped\n"), ["exit code 75"]),
        (ended(-11), ["signal"]),
        (ended(-6, hung=True), ["hang"]),
        (ended(0, left=("python -m cetnet train",)), ["left running"]),
        (ended(2, "cetnet: train.yaml: data: is missing\n"), []),
        (ended(2, "Usage: cetnet train [OPTIONS]\n"), []),
        (ended(2, "cetnet: there is no room left on it\n"), ["message"]),
        (ended(2, "cetnet: train.yaml: wrong\nand more of it\n"), ["message"]),
        (ended(2), ["message"]),
    ],
)
def test_what_an_end_says(end: Ended, kinds: list[str], tmp_path: Path) -> None:
    found = failures_of_end(Command(["train", "train.yaml"], tmp_path), end)
    assert [failure.kind for failure in found] == kinds


def test_a_traceback_s_signature_has_no_numbers_of_the_case(tmp_path: Path) -> None:
    (failure,) = failures_of_end(Command(["train"], tmp_path), ended(1, TRACEBACK))
    assert (
        failure.signature == "trainer/files.py:35 write_text OSError: [Errno N] No space left on device: '…'"
    )


def test_sigterm_may_be_answered_by_its_own_codes(tmp_path: Path) -> None:
    for code in (75, 143, -15, 0):
        end = Ended(code, "", "", 1.0, hung=False, stopping=0.5, left=[])
        assert not failures_of_end(Command(["train"], tmp_path, stop_after=0.5), end)


def test_a_lost_row_or_another_value_is_seen(tmp_path: Path) -> None:
    clicks, dialect = rows(random.Random(3)), Dialect()
    write_yaml(tmp_path / "raw.yaml", SCHEMA)
    (tmp_path / "raw.csv").write_bytes(csv_bytes(clicks, dialect))
    pq.write_table(table(clicks), tmp_path / "raw.parquet")
    out = tmp_path / "out"
    prepare_tabular("csv", tmp_path / "raw.csv", out, tmp_path / "raw.yaml", workers=1)
    files = {suffix: [tmp_path / f"raw.{suffix}"] for suffix in ("csv", "parquet")}
    assert same_as_csv(out, files["csv"], dialect) == same_as_parquet(out, files["parquet"]) == []

    part = next((out / "train").glob("*.parquet"))
    whole = pq.read_table(part)
    for name in ("ts", "note"):
        place = whole.column_names.index(name)
        moved = whole.set_column(place, name, whole[name].take([*range(1, len(whole)), 0]))
        pq.write_table(moved, part)
        assert [failure.kind for failure in same_as_csv(out, files["csv"], dialect)] == ["values"]
    pq.write_table(whole.slice(1), part)
    for found in (same_as_csv(out, files["csv"], dialect), same_as_parquet(out, files["parquet"])):
        assert [failure.kind for failure in found] == ["rows lost"]
    assert predicted(out / "train", out / "test" / part.name)[0].kind == "rows lost"
    assert {*SPLITS, "vocabularies"} == {path.name for path in out.iterdir() if path.is_dir()}


def test_a_sample(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "cetnet.benchmarks.fuzz", "--commands", "24", "--jobs", "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 commands, 0 failed" in done.stdout
