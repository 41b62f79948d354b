import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine import tasks
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.generate.taobao import generate_taobao_ad
from cetnet.trainer.prepare.sources import taobao
from cetnet.trainer.prepare.sources.taobao import PROFILE, last_before, prepare_taobao_ad
from tests.paths import ROOT, SCHEMAS
from tests.trainer.prepare.slow import check_like, check_prepared

Row = dict[str, Any]
IDS = ("userid", *PROFILE, "adgroup_id", "cate_id", "campaign_id", "customer", "brand", "pid", "btag")


def slow_rows(raw: Path, split: str) -> dict[str, list[Row]]:
    """The rows of each split with raw ids as text: a plain reader that holds everything."""

    def table(name: str) -> list[dict[str, str]]:
        with (raw / name).open(newline="") as file:
            reader = csv.reader(file)
            header = [column.strip() for column in next(reader)]
            return [dict(zip(header, line, strict=True)) for line in reader]

    profiles = {line["userid"]: line for line in table("user_profile.csv")}
    ads = {line["adgroup_id"]: line for line in table("ad_feature.csv")}
    log: dict[str, list[dict[str, str]]] = {}
    for line in table("behavior_log.csv"):
        log.setdefault(line["user"], []).append(line)
    for behaviors in log.values():
        behaviors.sort(key=lambda behavior: int(behavior["time_stamp"]))
    rows: dict[str, list[Row]] = {name: [] for name in SPLITS}
    codes = {"pv": "1", "cart": "2", "fav": "3", "buy": "4"}
    for line in table("raw_sample.csv"):
        if line["user"] not in profiles:
            continue
        second, ad = int(line["time_stamp"]), ads[line["adgroup_id"]]
        before = [b for b in log.get(line["user"], []) if int(b["time_stamp"]) < second][-50:]
        row: Row = {"clk": float(line["clk"]), "group_id": int(line["user"]), "time_stamp": second}
        row |= {"userid": line["user"], **{name: profiles[line["user"]][name] or "0" for name in PROFILE}}
        row |= {name: "0" if ad[name] == "NULL" else ad[name] for name in IDS[-7:-2]}
        row |= {"adgroup_id": line["adgroup_id"], "pid": line["pid"], "btag": "1"}
        row |= {"price": float(np.float32(ad["price"]))}
        row |= {"cate_his": [b["cate"] for b in before], "brand_his": [b["brand"] for b in before]}
        row |= {"btag_his": [codes[b["btag"]] for b in before]}
        day = (second + 8 * 3600) // 86_400 - (1_494_000_000 + 8 * 3600) // 86_400 + 6  # of May
        rows["test" if day == 13 else "validation" if day == 12 and split == "clean" else "train"].append(row)
    for part in rows.values():
        part.sort(key=lambda row: row["time_stamp"])
    if split == "bars":
        rows["validation"] = rows["test"]
    return rows


def read(out: Path) -> dict[str, list[Row]]:
    return {split: pq.read_table(out / split).to_pylist() for split in SPLITS}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("taobao") / "raw"
    generate_taobao_ad(out, 1500, 5, behaviors=20_000)
    return out


@pytest.mark.parametrize("split", ["clean", "bars"])
def test_rows_against_a_slow_reader(
    raw: Path, split: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In many chunks, buckets and slices, which must not show."""
    monkeypatch.setattr(tasks, "MAX_CHUNK_BYTES", 60_000)
    monkeypatch.setattr(taobao, "TIMES_ITS_BYTES", dict.fromkeys(taobao.TIMES_ITS_BYTES, 2**14))
    monkeypatch.setattr(taobao, "SLICE_ROWS", 300)
    out = tmp_path / "out"
    schema = prepare_taobao_ad(raw, out, split, workers=1, memory="8GB")
    check_prepared(out, slow_rows(raw, split), 10)
    check_like(schema, SCHEMAS / "taobao_ad.yaml")
    assert list(tmp_path.iterdir()) == [out]


def test_the_generated_files_are_odd(raw: Path) -> None:
    assert (raw / "user_profile.csv").read_text().splitlines()[0].endswith("new_user_class_level ")
    assert ",,".join(["", ""]) in (raw / "user_profile.csv").read_text()
    assert ",NULL," in (raw / "ad_feature.csv").read_text()
    sample = pl.read_csv(raw / "raw_sample.csv")
    log = pl.read_csv(raw / "behavior_log.csv")
    profile = pl.read_csv(raw / "user_profile.csv")
    assert log.join(sample, on=["user", "time_stamp"], how="semi").height > 100
    assert 0 < sample.join(profile, left_on="user", right_on="userid", how="anti").height < sample.height / 2
    assert log.select(pl.struct("user", "time_stamp").is_duplicated().sum()).item() > 50


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1),
    st.lists(st.tuples(st.integers(0, 5), st.integers(-2, 14)), min_size=1),
    st.integers(1, 4),
)
def test_last_before(events: list[tuple[int, int]], shown: list[tuple[int, int]], length: int) -> None:
    events = sorted(events)
    columns = ["user", "time_stamp"]
    first, lengths = last_before(
        pl.DataFrame(shown, columns, orient="row"), pl.DataFrame(events, columns, orient="row"), length
    )
    for (user, second), start, count in zip(shown, first, lengths, strict=True):
        before = [n for n, (owner, time) in enumerate(events) if owner == user and time < second][-length:]
        assert list(range(start, start + count))[:count] == before


def test_killed_and_called_again(raw: Path, tmp_path: Path) -> None:
    """SIGKILL at the second bucket's histories, then the same call again; two processes give the same bytes."""
    code = f"""
import os, signal
from pathlib import Path
from cetnet.trainer.prepare.engine import tasks
from cetnet.trainer.prepare.sources import taobao
tasks.MAX_CHUNK_BYTES = 300_000
taobao.TIMES_ITS_BYTES = {{name: 2**14 for name in taobao.TIMES_ITS_BYTES}}
join = taobao.join_bucket
seen = []
def watched(folder, bucket, *rest):
    seen.append(bucket)
    if bucket == 1 and KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    join(folder, bucket, *rest)
taobao.join_bucket = watched
taobao.prepare_taobao_ad(Path({str(raw)!r}), Path('out'), command="cetnet", workers=1, memory="8GB")
print(seen)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}

    def run(kill: bool) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", f"KILL = {kill}\n{code}"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert run(True).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.rows.work"]
    again = run(False)
    assert again.stdout.startswith("[1, 2"), again
    prepare_taobao_ad(raw, tmp_path / "whole", command="cetnet", workers=2, memory="900MB")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    files = [sorted((tmp_path / name).rglob("*.*")) for name in ("out", "whole")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("raw_sample.csv", "1,x,1,430548_1007,1,0", r"raw_sample\.csv line 1502: column 'time_stamp' .* 'x'"),
        ("raw_sample.csv", "1,1494000000,1,430548_1007,1,", "line 1502: column 'clk' cannot be"),
        ("raw_sample.csv", "1,1494000000,1,430548_1007,1,0,8", r"sample\.csv line 1502: 7 values, not 6"),
        (
            "raw_sample.csv",
            "1,1494000000,1,430548_1007,1,0,8\n1,1494000000,1,430548_1007,1",
            r"sample\.csv line 1502: 7 values, not 6",
        ),
        ("behavior_log.csv", "1,1494000000,look,1,1", r"log\.csv line 20002: column 'btag' cannot be 'look'"),
        ("ad_feature.csv", "1,2,3", r"ad_feature\.csv line \d+: 3 values, not 6"),
        ("user_profile.csv", "one,1,1,1,1,1,1,1,1", r"user_profile\.csv line \d+: column 'userid' cannot"),
    ],
)
def test_bad_lines(raw: Path, tmp_path: Path, file: str, line: str, message: str) -> None:
    copy = tmp_path / "raw"
    copy.mkdir()
    for path in raw.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    with (copy / file).open("a") as end:
        end.write(line + "\n")
    with pytest.raises(UserError, match=message) as caught:
        prepare_taobao_ad(copy, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [copy]


def test_bad_files(raw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "raw"
    copy.mkdir()
    for path in raw.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "ad_feature.csv").write_text("adgroup,cate\n1,2\n")
    with pytest.raises(UserError, match=r"ad_feature\.csv: expected the columns adgroup_id,cate_id"):
        prepare_taobao_ad(copy, tmp_path / "out")
    (copy / "ad_feature.csv").write_bytes((raw / "ad_feature.csv").read_bytes())
    (copy / "behavior_log.csv").write_text("user,time_stamp,btag,cate,brand\n")
    with pytest.raises(UserError, match=r"behavior_log\.csv has no rows"):
        prepare_taobao_ad(copy, tmp_path / "out")
    (copy / "behavior_log.csv").unlink()
    with pytest.raises(UserError, match=r"behavior_log\.csv: No such file"):
        prepare_taobao_ad(copy, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [copy]
