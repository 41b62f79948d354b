"""The chunked preparation: the same bytes however it is cut, interrupted and distributed."""

import csv
import gzip
import io
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine import chunks, splits, stages, tasks
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema, hash_ids
from cetnet.trainer.prepare.engine.splits import TimeSplit, parse_split
from cetnet.trainer.prepare.engine.tabular import prepare_table, prepare_tabular
from cetnet.trainer.prepare.engine.tasks import (
    BYTES_PER_CHUNK_BYTE,
    PROCESS_BYTES,
    Plan,
    Resources,
    Unfinished,
    local_resources,
    parse_memory,
)
from tests.trainer.prepare.slow import loop_hash
from tests.trainer.prepare.test_tabular import check_against_loops, read, records, write_csv, write_schema

SMALL = Plan(chunk_bytes=2_000, bucket_bytes=stages.ENTRY_BYTES * 40)


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def small_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resources, "plan", lambda _: SMALL)


def shuffled() -> list[dict[str, Any]]:
    """300 rows, not in time order, with values that have quotes, line ends and commas in CSV."""
    rows = sorted(records(), key=lambda row: row["time"] * 7919 % 300)
    for row in rows:
        if row["item"] == "i4":
            row["item"] = 'four\n"quoted", and more'
    return rows


def write_raw(path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    if kind == "parquet":
        pl.DataFrame(rows).write_parquet(path, row_group_size=70)
    else:
        write_csv(path.with_suffix(""), rows)
        text = path.with_suffix("").read_bytes()
        path.with_suffix("").unlink()
        path.write_bytes(gzip.compress(text, mtime=0) if kind == "csv.gz" else text)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("split", ["random:0.8,0.1,0.1", "time:0.8,0.1,0.1"])
def test_result_does_not_depend_on_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, split: str
) -> None:
    rows = shuffled()
    for number, part in enumerate((rows[:180], rows[180:])):
        (tmp_path / "raw").mkdir(exist_ok=True)
        write_raw(tmp_path / "raw" / f"{number}.{kind}", kind, part)
    schema = write_schema(tmp_path / "raw.yaml")
    format: Any = "parquet" if kind == "parquet" else "csv"

    def prepare(plan: Plan, name: str) -> dict[str, bytes]:
        monkeypatch.setattr(Resources, "plan", lambda _: plan)
        out = tmp_path / name
        prepare_tabular(format, tmp_path / "raw", out, schema, split=split, workers=1, command="c")
        return tree(out)

    whole = prepare(Plan(10**6, 10**9), "whole")
    assert prepare(SMALL, "small") == whole
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []
    if split.startswith("time"):
        in_order = sorted(rows, key=lambda row: row["time"])
        check_against_loops(
            tmp_path / "small",
            {"train": in_order[:240], "validation": in_order[240:270], "test": in_order[270:]},
        )


@pytest.mark.usefixtures("small_plan")
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 1000]))
def test_equal_times_keep_the_order_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, seed: int, width: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("ties")
    draw = random.Random(seed)
    # most rows have one of few times, so that some times alone fill several ranges
    times = [draw.choice([-7, draw.randrange(width), draw.randrange(10**9)]) for _ in range(400)]
    text = "y,t,n\n" + "".join(f"{i % 2},{time},{i % 90}\n" for i, time in enumerate(times))
    (tmp_path / "raw.csv").write_text(text)
    spec = RawSchema(
        label="y", timestamp="t", tables={"n": 90}, features=(RawFeature(name="n", kind="categorical"),)
    )
    ordered = sorted(range(400), key=lambda i: times[i])
    first, second = (times[ordered[rank]] for rank in (200, 300))
    split = TimeSplit((0.5, 0.25, 0.25), "t")
    prepare: Any = lambda: prepare_table(  # noqa: E731
        spec, {"all": [tmp_path / "raw.csv"]}, "csv", tmp_path / "out", split=split, title="t", source="s",
        command="c", workers=1,
    )  # fmt: skip
    if not min(times) < first < second:
        with pytest.raises(UserError, match="too few distinct"):
            prepare()
        return
    prepare()
    found = [row for part in read(tmp_path / "out").values() for row in part]
    assert [(row["t"], row["n"]) for row in found] == [(times[i], i % 90) for i in ordered]
    assert next(len(part) for part in read(tmp_path / "out").values()) == sum(time < first for time in times)


# ---------------------------------------------------------------------------------- kill, resume, distribute

PREPARE = """
import multiprocessing, os, signal, sys
from pathlib import Path
from cetnet.trainer.prepare.engine import tasks
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
if __name__ == "__main__":
    raw, out, schema, workers, kill_after, chunk_bytes, bucket_bytes = sys.argv[1:]
    tasks.Resources.plan = lambda _: tasks.Plan(int(chunk_bytes), int(bucket_bytes))
    done, wait = 0, tasks.wait
    def wait_or_die(*args, **kwargs):
        global done
        result = wait(*args, **kwargs)
        done += len(result.done)
        if done >= int(kill_after):
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    tasks.wait = wait_or_die
    prepare_tabular("csv", Path(raw), Path(out), Path(schema), split="time:0.8,0.1,0.1", workers=int(workers),
                    command="c")
"""


def run_until_killed(tmp_path: Path, workers: int, kill_after: int) -> subprocess.CompletedProcess[str]:
    files = [tmp_path / "raw.csv", tmp_path / "out", tmp_path / "raw.yaml"]
    arguments = [*files, workers, kill_after, SMALL.chunk_bytes, SMALL.bucket_bytes]
    script = tmp_path / "prepare.py"
    script.write_text(PREPARE)
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("small_plan")
def test_killed_preparation_goes_on(tmp_path: Path) -> None:
    write_csv(tmp_path / "raw.csv", shuffled())
    schema = write_schema(tmp_path / "raw.yaml")
    prepare_tabular(
        "csv",
        tmp_path / "raw.csv",
        tmp_path / "whole",
        schema,
        split="time:0.8,0.1,0.1",
        workers=1,
        command="c",
    )
    killed = run_until_killed(tmp_path, workers=2, kill_after=9)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    # its workers end by themselves
    workers = [int(pid) for pid in killed.stdout.split()]
    assert len(workers) == 2
    psutil.wait_procs([psutil.Process(pid) for pid in workers if psutil.pid_exists(pid)], timeout=60)
    assert not any(psutil.pid_exists(pid) for pid in workers)
    # with one worker, killed again, then to the end
    for kill_after in (30, 10**6):
        run = run_until_killed(tmp_path, workers=1, kill_after=kill_after)
        assert "going on from" in run.stderr
    assert run.returncode == 0, run.stderr
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole", "raw.csv", "raw.yaml", "prepare.py"}


def test_dask_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    write_csv(tmp_path / "raw.csv", shuffled())
    schema = write_schema(tmp_path / "raw.yaml")

    def prepare(name: str, **options: Any) -> dict[str, bytes]:
        monkeypatch.setattr(Resources, "plan", lambda _: SMALL)
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / name, schema, command="c", **options)
        return tree(tmp_path / name)

    local = prepare("local", workers=1)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="1GB", dashboard_address=None
    ) as cluster:
        assert prepare("dask", scheduler=cluster.scheduler_address) == local
        rows = records(300)
        rows[200]["price"] = "cheap"
        write_csv(tmp_path / "raw.csv", rows)
        with pytest.raises(UserError, match="column 'price', row 201"):
            prepare("bad", scheduler=cluster.scheduler_address)
    assert not (tmp_path / ".bad.work").exists()


def test_dask_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "raw.csv", records(50))
    schema = write_schema(tmp_path / "raw.yaml")
    with pytest.raises(UserError, match="no Dask scheduler answers") as caught:
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, scheduler="tcp://127.0.0.1:9")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"cetnet\[distributed\]"):
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, scheduler="tcp://127.0.0.1:9")
    assert {path.name for path in tmp_path.iterdir()} == {"raw.csv", "raw.yaml"}


@pytest.mark.usefixtures("small_plan")
def test_unfinished_work_of_another_job(tmp_path: Path) -> None:
    write_csv(tmp_path / "raw.csv", records())
    schema = write_schema(tmp_path / "raw.yaml")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, schema)
    assert (tmp_path / ".out.work").is_dir()
    write_csv(tmp_path / "raw.csv", records(200))
    with pytest.raises(UserError, match="another preparation"):
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, workers=1)
    prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, workers=1, overwrite=True)
    assert sum(len(rows) for rows in read(tmp_path / "out").values()) == 200
    assert not (tmp_path / ".out.work").exists()


@pytest.mark.usefixtures("small_plan")
@pytest.mark.parametrize("library", ["numpy", "polars", "torch"])
def test_unfinished_work_of_another_version(tmp_path: Path, library: str) -> None:
    write_csv(tmp_path / "raw.csv", records())
    schema = write_schema(tmp_path / "raw.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "version", lambda name: "0.1" if name == library else metadata.version(name))
        with pytest.raises(KeyboardInterrupt):
            interrupted(tmp_path, schema)
    with pytest.raises(UserError, match="another version of the program") as error:
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, workers=1)
    assert "\n" not in str(error.value)


def interrupted(tmp_path: Path, schema: Path) -> None:
    """A preparation that gets Ctrl-C while it encodes."""
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt  # not by a signal: TorchX, in other tests, takes over SIGINT

        patch.setattr(stages, "encode", interrupt)
        prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, workers=1)


@pytest.mark.usefixtures("small_plan")
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_value_in_a_late_chunk(tmp_path: Path, workers: int) -> None:
    rows = shuffled()
    for row in (151, 260):
        rows[row]["time"] = "noon"
    write_csv(tmp_path / "raw/a.csv", rows[:100])
    write_csv(tmp_path / "raw/b.csv", rows[100:])
    with pytest.raises(UserError, match=r"b\.csv: column 'time', row 52: expected integer seconds"):
        prepare_tabular(
            "csv", tmp_path / "raw", tmp_path / "out", write_schema(tmp_path / "raw.yaml"), workers=workers
        )
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "raw.yaml"}


def test_memory_too_small(tmp_path: Path) -> None:
    write_csv(tmp_path / "raw.csv", records(50))
    schema = write_schema(tmp_path / "raw.yaml")
    for memory, message in [
        ("100MB", "too little: give"),
        ("4", "a size such as 4GB"),
        ("1.2.3GB", "a size"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, memory=memory)
    assert [parse_memory(text) for text in ("4GB", "1.5 GiB", "512mb")] == [4 * 10**9, 3 * 2**29, 512 * 10**6]


@given(st.integers(1, 64), st.integers(32 * 10**6, 10**11), st.integers(0, 10**11))
def test_less_memory_than_the_work_was_begun_with(workers: int, share: int, memory: int) -> None:
    plan = Resources(workers, share).plan()
    now = Resources(workers, max(32 * 10**6, memory // workers))
    limit = workers * (now.share + PROCESS_BYTES)
    needed = max(plan.chunk_bytes * BYTES_PER_CHUNK_BYTE, 2 * plan.bucket_bytes)
    try:
        fewer = now.fit(plan)
    except Unfinished as error:
        assert needed + PROCESS_BYTES > limit
        match = re.search(r"give --memory (\d+MB), or remove it", str(error))
        assert match
        assert local_resources(parse_memory(match[1]), 1).fit(plan).workers == 1
        return
    assert fewer.share >= needed
    assert 1 <= fewer.workers <= workers
    assert fewer.workers * (fewer.share + PROCESS_BYTES) <= limit


@pytest.mark.parametrize(
    ("format", "name", "content"),
    [
        ("parquet", "a.parquet", b"PAR1 no"),
        ("csv", "a.csv", b""),
        ("csv", "a.csv.gz", b"no gzip"),
        ("csv", "a.csv.gz", gzip.compress(b"click,user\n1,2\n" * 100, mtime=0)[:40]),
        ("csv", "a.csv", b"click,user\n1,\xff\n"),
    ],
    ids=["no parquet", "empty", "no gzip", "cut gzip", "no utf-8"],
)
def test_unreadable_files(tmp_path: Path, format: Any, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    schema = write_schema(
        tmp_path / "raw.yaml", features=[{"name": "user", "kind": "categorical"}], tables={}, timestamp=None
    )
    with pytest.raises(UserError, match="is not readable as") as caught:
        prepare_tabular(format, tmp_path / name, tmp_path / "out", schema)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {name, "raw.yaml"}


# ------------------------------------------------------------------------------------------- small functions

text = st.text(st.sampled_from('ab,"\n'), max_size=8)


@given(st.lists(st.tuples(text, text), min_size=1, max_size=30), st.integers(60, 200))
def test_cuts_are_between_records(records: list[tuple[str, str]], chunk_bytes: int) -> None:
    file = io.StringIO(newline="")
    starts = []
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for record in records:
        starts.append(file.tell())
        writer.writerow(record)
    path = Path(tempfile.gettempdir(), f"cuts-{os.getpid()}.csv")
    try:
        path.write_text(file.getvalue(), newline="")
        cuts = chunks.line_cuts(path, chunk_bytes, '"')
    finally:
        path.unlink()
    assert set(cuts) <= set(starts[1:])
    bounds = [0, *cuts, len(file.getvalue())]
    assert all(0 < b - a < 2 * chunk_bytes for a, b in itertools.pairwise(bounds))


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    (tmp_path / "raw.csv").write_text('a,"b\n' * 101)
    with pytest.raises(UserError, match="quote is not closed"):
        chunks.line_cuts(tmp_path / "raw.csv", 3, '"')
    assert len(chunks.line_cuts(tmp_path / "raw.csv", 100, None)) == 5


@given(st.lists(st.floats(-1e30, 1e30)))
def test_exact_sum(values: list[float]) -> None:
    assert stages._exact_sum(np.array(values, np.float64)) == sum(map(Fraction, values), Fraction(0))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.data())
def test_order_statistic(values: list[int], data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, len(values) - 1))
    halves = np.array_split(np.array(values, np.int64), 2)
    found = splits._order_statistic(lambda: iter(halves), rank, min(values), max(values), bins=4)
    assert found == sorted(values)[rank]


def test_hashed_features(tmp_path: Path) -> None:
    lines = [("0", "68fd1e64", "x|y"), ("1", "", ""), ("1", "fb936136", "y|z|w"), ("0", "7fffffff", "x")] * 30
    (tmp_path / "raw.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    spec = RawSchema(
        label="y",
        header=("y", "c", "h"),
        features=(
            RawFeature(name="c", kind="categorical", hash=1000, hash_function="hex"),
            RawFeature(name="h", kind="sequence", hash=50, max_length=2, keep="oldest"),
        ),
    )
    files = {"all": [tmp_path / "raw.csv"]}
    schema = prepare_table(
        spec, files, "csv", tmp_path / "out", split=parse_split("random:0.4,0.3,0.3", spec, 1), title="t",
        source="s", command="c",
    )  # fmt: skip
    assert schema.tables == {"c": 1000, "h": 50}
    found = {(row["c"], *row["h"]) for part in read(tmp_path / "out").values() for row in part}
    expected = set()
    for _, c, h in lines:
        number = int(c or "0", 16)
        number -= 2**32 if number >= 2**31 else 0
        expected.add((number % 1000, *(1 + loop_hash(word) % 49 for word in h.split("|")[:2] if word)))
    assert found == expected
    (tmp_path / "raw.csv").write_text("0,12,\n1,xyz,\n" * 20)
    with pytest.raises(UserError, match="column 'c', row 2: expected hexadecimal"):
        prepare_table(
            spec, files, "csv", tmp_path / "bad", split=parse_split("random:0.4,0.3,0.3", spec, 1), title="t",
            source="s", command="c",
        )  # fmt: skip
    assert hash_ids(pl.Series(["100000000", "-1", ""]), spec.features[0]).tolist() == [-1, -1, -1]


def halve(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("n").cast(pl.Int64) // 2)


def test_transform_and_a_file_in_two_splits(tmp_path: Path) -> None:
    for name, values in (("train", range(20)), ("test", range(10, 30))):
        (tmp_path / name).write_text("y,n\n" + "".join(f"{i % 2},{i}\n" for i in values))
    spec = RawSchema(label="y", features=(RawFeature(name="n", kind="categorical"),))
    files = {"train": [tmp_path / "train"], "validation": [tmp_path / "test"], "test": [tmp_path / "test"]}
    prepare_table(spec, files, "csv", tmp_path / "out", transform=halve, title="t", source="s", command="c")
    known = sorted({str(i // 2) for i in range(20)})
    found = read(tmp_path / "out")
    assert [row["n"] for row in found["train"]] == [1 + known.index(str(i // 2)) for i in range(20)]
    late = [1 + known.index(str(i // 2)) if i < 20 else 0 for i in range(10, 30)]
    assert [row["n"] for row in found["validation"]] == [row["n"] for row in found["test"]] == late


@pytest.mark.usefixtures("small_plan")
def test_row_groups_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cetnet.trainer.prepare.engine import layout, tabular

    monkeypatch.setattr(layout, "ROW_GROUP_ROWS", 8)
    monkeypatch.setattr(tabular, "ROWS_PER_FILE", 64)
    write_csv(tmp_path / "raw.csv", records())
    schema = write_schema(tmp_path / "raw.yaml")
    prepare_tabular(
        "csv", tmp_path / "raw.csv", tmp_path / "out", schema, workers=1, split="time:0.8,0.1,0.1"
    )
    files = sorted((tmp_path / "out/train").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [64, 64, 64, 48]
    assert pq.read_metadata(files[0]).num_row_groups == 8
    assert [row["time"] for row in read(tmp_path / "out")["train"]] == list(range(1000, 1240))
