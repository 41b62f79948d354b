"""Raw rows in, scores out: as of rows that are encoded by hand; columns passed through, metrics by slice."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from cetnet.trainer.cli import main
from cetnet.trainer.data import parquet_files
from cetnet.trainer.data.blocks import BlockReader
from cetnet.trainer.data.dataset import Dataset, Piece
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from cetnet.trainer.prepare.raw_split import find_rows, raw_split
from cetnet.trainer.yaml_files import save_yaml
from tests.data import write_dataset
from tests.processes import run_settings
from tests.trainer.raw_day import RAW_SCHEMA, ROWS, draw, encode_by_hand, metrics_of, write_csv, write_parquet

Run = Callable[..., tuple[int, str]]


class Place(NamedTuple):
    """A run, tomorrow's rows in several forms, and their probabilities when they are encoded by hand."""

    path: Path
    rows: list[dict]
    expected: pl.DataFrame


def cetnet(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cetnet", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code


def prepare(raw: Path, out: Path) -> None:
    prepare_tabular("parquet", raw, out, Path("raw.yaml"), "time:0.8,0.1,0.1", workers=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    path = tmp_path_factory.mktemp("raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        Path("raw.yaml").write_text(yaml.safe_dump(RAW_SCHEMA), encoding="utf-8")
        write_parquet(Path("today.parquet"), draw(1))
        prepare_tabular(
            "parquet", Path("today.parquet"), Path("data"), Path("raw.yaml"), "time:0.8,0.1,0.1", workers=1
        )
        settings = {
            "run_dir": "run",
            "data": {"path": "data", "batch_size": 32, "lanes": 4},
            "model": {
                "components": {
                    "dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]},
                    "din": {"kind": "din", "embedding_dim": 4, "hidden_units": [8]},
                }
            },
            "training": {"device": "cpu"},
            "evaluation": {"splits": []},
        }
        Path("experiment.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        cetnet("train", "experiment.yaml")
        rows = draw(2, new=3)
        write_parquet(Path("tomorrow.parquet"), rows)
        write_csv(Path("csv/hour=1/a.csv"), rows[:60])
        write_csv(Path("csv/hour=2/b.csv"), rows[60:])
        encode_by_hand(Path("run"), rows, Path("by hand"))
        cetnet("predict", "run", "by hand", "--out", "expected.parquet")
        yield Place(path, rows, pl.read_parquet("expected.parquet", glob=False))


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(place.path)
    return place


def check_scores(found: pl.DataFrame, place: Place, tolerance: float = 0.0) -> None:
    for output in ("fused", "dcnv2", "din"):
        np.testing.assert_allclose(found[output], place.expected[output], rtol=0, atol=tolerance)
    assert found["row"].to_list() == list(range(ROWS))
    assert found["label"].to_list() == [row["clicked"] for row in place.rows]
    assert found["weight"].to_list() == [row["w"] for row in place.rows]
    assert found["group"].to_list() == [row["user"] for row in place.rows]


def test_raw_parquet(here: Place, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = pq.read_table("by hand/test/part.parquet")
    assert 0 < np.count_nonzero(unknown["item"].to_numpy() == 0) < ROWS  # the rows are worth a test
    keep = ("--keep", "key,history,device")
    assert run("predict", "run", "tomorrow.parquet", "--out", "scores.parquet", *keep)[0] == 0
    found = pl.read_parquet("scores.parquet")
    assert found.columns == [
        "row", "label", "weight", "group", "key", "history", "device", "fused", "dcnv2", "din"
    ]  # fmt: skip
    check_scores(found, here)
    for name in ("key", "history", "device"):
        assert found[name].to_list() == [row[name] for row in here.rows]

    # A row group that is read in blocks, and columns that directories name.
    monkeypatch.setattr(parquet_files, "BLOCK_ROWS", 37)
    for day, part in enumerate((here.rows[:100], here.rows[100:])):
        write_parquet(Path(f"days/device=tv {day}/a.parquet"), [
            {name: value for name, value in row.items() if name != "device"} for row in part
        ], row_group_size=1000)  # fmt: skip
    empty = pq.read_table("days/device=tv 0/a.parquet").slice(0, 0)
    pq.write_table(empty, "days/device=tv 0/b.parquet")
    assert run("predict", "run", "days", "--out", "scores.parquet", "--keep", "device,key")[0] == 0
    found = pl.read_parquet("scores.parquet")
    check_scores(found, here)
    assert found["device"].to_list() == ["tv 0"] * 100 + ["tv 1"] * 50
    assert found["key"].to_list() == [row["key"] for row in here.rows]

    # Without what only metrics need; and integers that are text today.
    rows = [{k: str(v) if k == "item" and v else v for k, v in row.items()} for row in here.rows]
    bare = [{k: v for k, v in row.items() if k not in ("clicked", "w", "ts")} for row in rows]
    write_parquet(Path("bare.parquet"), bare)
    assert run("predict", "run", "bare.parquet", "--out", "scores.parquet")[0] == 0
    found = pl.read_parquet("scores.parquet")
    assert found.columns == ["row", "group", "fused", "dcnv2", "din"]
    np.testing.assert_array_equal(found["fused"], here.expected["fused"])
    code, said = run("evaluate", "run", "bare.parquet")
    assert code == 2
    assert "bare.parquet: no column of numbers 'clicked' with the label, which metrics need" in said


def test_raw_csv_on_one_process_and_on_two(here: Place, run: Run) -> None:
    assert run("predict", "run", "csv", "--out", "scores.parquet", "--keep", "key,hour,tags")[0] == 0
    found = pl.read_parquet("scores.parquet")
    check_scores(found, here)
    assert found["key"].to_list() == [row["key"] for row in here.rows]
    assert found["hour"].to_list() == ["1"] * 60 + ["2"] * 90
    assert found["tags"].to_list() == ["|".join(row["tags"] or []) or None for row in here.rows]

    command = [sys.executable, "-P", "-m", "cetnet", "predict", "run", "csv", "--out", "two/scores.parquet"]
    ended = subprocess.run(
        [*command, "--nproc", "2"], capture_output=True, text=True, check=False, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    check_scores(pl.read_parquet("two/scores.parquet"), here, tolerance=1e-6)
    assert [path.name for path in here.path.glob("**/.cetnet-csv-*")] == []


def oracle(rows: pl.DataFrame) -> dict[str, float | None]:
    label, weight, fused = (rows[name].to_numpy() for name in ("label", "weight", "fused"))
    expected: dict[str, float | None] = dict.fromkeys(
        ["ne", "logloss", "auc", "calibration", "positive_rate"]
    )
    if weight.sum():
        rate = expected["positive_rate"] = float(np.average(label, weights=weight))
        expected["logloss"] = loss = log_loss(label, fused, sample_weight=weight, labels=[0, 1])
        if 0 < rate < 1:
            expected["ne"] = loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
            expected["auc"] = roc_auc_score(label, fused, sample_weight=weight)
        if rate:
            expected["calibration"] = (weight @ fused) / (weight @ label)
    return expected


@pytest.mark.parametrize("data", ["tomorrow.parquet", "by hand"])
def test_metrics_by_slice(here: Place, run: Run, data: str) -> None:
    by = ["device", "item"] if data == "by hand" else ["device", "item", "key", "ts"]
    assert run("evaluate", "run", data, "--by", ",".join(by), "--json", "metrics.json")[0] == 0
    found = metrics_of(Path("metrics.json"))
    rows = here.expected.with_columns(
        pl.Series(name, [row[name] for row in here.rows]).cast(pl.String).fill_null("(missing)")
        for name in ("device", "item", "key")
    )
    known = set(pq.read_table("run/vocabularies/item.parquet")["value"].to_pylist())
    unseen = pl.Series([str(row["item"]) not in known for row in here.rows])
    for name in ("device", "item"):
        expected = {str(value): group for (value,), group in rows.group_by(name)}
        slices = {each["value"]: each for each in found["by"][name]}
        if name == "item":
            if data == "by hand":  # by the values that ids have
                expected = {value: group for value, group in expected.items() if value in known}
            expected |= {
                "known to the model": rows.filter(~unseen),
                "unknown to the model, or missing": rows.filter(unseen),
            }
        assert set(slices) == set(expected)
        for value, group in expected.items():
            assert slices[value]["rows"] == group.height
            for metric, number in oracle(group).items():
                assert slices[value][metric] == (
                    None if number is None else pytest.approx(number, abs=1e-6)
                ), metric
    whole = oracle(rows)
    for metric in ("ne", "logloss", "auc", "calibration"):
        assert found["metrics"][f"{metric}/fused"] == pytest.approx(whole[metric], abs=1e-6)
    if "key" in by:
        *top, others = found["by"]["key"]
        assert others["value"] == f"others ({ROWS - 20} values)"
        assert len(top) == 20
        assert others["rows"] == ROWS - 20
        assert [(each["value"], each["rows"]) for each in found["by"]["ts"]] == [("2023-11-14", ROWS)]


@pytest.mark.usefixtures("here")
def test_times_are_sliced_by_day(run: Run) -> None:
    rows = pq.read_table("tomorrow.parquet")
    times = pa.array(np.arange(ROWS) * 3600, pa.timestamp("s", "Europe/Warsaw"))
    numbers = pa.array([None if i % 3 else 2.0 if i % 2 else 0.5 for i in range(ROWS)])
    pq.write_table(rows.append_column("at", times).append_column("x", numbers), "times.parquet")
    assert run("evaluate", "run", "times.parquet", "--by", "at,x", "--json", "metrics.json")[0] == 0
    by = metrics_of(Path("metrics.json"))["by"]
    assert {each["value"]: each["rows"] for each in by["at"]} == {
        **{f"1970-01-0{day}": 24 for day in range(1, 7)},
        "1970-01-07": 6,
    }
    assert {each["value"]: each["rows"] for each in by["x"]} == {"(missing)": 100, "2": 25, "0.5": 25}


def test_mistakes(here: Place, run: Run) -> None:
    def said(*arguments: str) -> str:
        code, said = run(*arguments)
        assert code == 2, said
        assert said.count("\n") == 1, said
        return said

    def predict(data: str, *arguments: str) -> str:
        return said("predict", "run", data, "--out", "none/scores.parquet", *arguments)

    def changed(name: str, row: int, value: object) -> str:
        rows = [dict(row) for row in here.rows]
        rows[row][name] = value
        write_csv(Path("bad.csv"), rows)
        return "bad.csv"

    assert "nowhere.parquet: no such file" in predict("nowhere.parquet")
    assert "tomorrow.parquet has no splits, all of its rows are scored" in predict(
        "tomorrow.parquet", "--split", "test"
    )
    for prepared in ("data/test", "data/test/part-00000.parquet"):
        assert "prepared rows, a split of a dataset; score them as `" in (told := predict(prepared))
        assert "/data --split test`" in told
    for place in ("tomorrow.parquet", "csv/scores.parquet"):
        raw = place.split("/", maxsplit=1)[0]
        assert f"{place}: {raw} is what is scored" in said("predict", "run", raw, "--out", place)
    assert "--keep fused: predictions have a column 'fused' of their own" in predict(
        "tomorrow.parquet", "--keep", "fused"
    )
    assert "--keep no: tomorrow.parquet has no column 'no'" in predict("tomorrow.parquet", "--keep", "key,no")
    assert "a.csv has no column 'no'" in predict("csv", "--keep", "no")
    assert "--keep a,,b: a name is empty" in predict("csv", "--keep", "a,,b")
    assert "--by tags: the column is list<" in said("evaluate", "run", "tomorrow.parquet", "--by", "tags")
    assert "bad.csv: column 'slot', row 101: expected ids, found '1.5'" in predict(
        changed("slot", 100, "1.5")
    )
    assert "bad.csv: column 'price', row 3: expected a finite number" in predict(changed("price", 2, "cheap"))
    written = (
        "bad.csv: column 'item', row 8: expected ids written as 17, as in training, not as 17.0, found '99.0'"
    )
    assert written in predict(changed("item", 7, "99.0"))
    lossy = (
        "bad.csv: column 'page', row 8: expected an integer with all of its digits, or text, found '1e+18'"
    )
    assert lossy in predict(changed("page", 7, "1e+18"))
    assert "bad.csv: row 4 (line 5)" in predict(
        changed("key", 3, 'a"b'.join("\n\n")) if False else _short_row(here)
    )
    bad = "bad.csv: column 'clicked', row 2: expected 0 or 1"
    assert bad in said("evaluate", "run", changed("clicked", 1, 5))
    rows = [{k: v for k, v in row.items() if k != "item"} for row in here.rows]
    write_parquet(Path("less.parquet"), rows)
    assert "less.parquet: no column 'item'" in predict("less.parquet")
    assert not Path("none").exists()
    assert list(here.path.glob("**/.cetnet-csv-*")) == []

    shutil.copytree("run", "harmed")
    vocabulary = pq.read_table("run/vocabularies/item.parquet")
    ids = pa.array(np.roll(vocabulary["id"].to_numpy(), 1))
    pq.write_table(vocabulary.set_column(1, "id", ids), "harmed/vocabularies/item.parquet")
    place = ("harmed", "tomorrow.parquet", "--out", "none/scores.parquet")
    assert "item.parquet: it isn't the vocabulary that the run's schema.yaml has" in said("predict", *place)
    encoding = Path("harmed/encoding.yaml")
    encoding.write_text(encoding.read_text(encoding="utf-8").replace("log1p", "none"), encoding="utf-8")
    assert "harmed: encoding.yaml and schema.yaml are not of one dataset" in said("predict", *place)
    with encoding.open("a", encoding="utf-8") as file:
        file.write("transform: cetnet.some.reader\n")
    assert "raw rows were read by a public dataset's own reader (cetnet.some.reader)" in said(
        "predict", *place
    )


def _short_row(here: Place) -> str:
    write_csv(Path("bad.csv"), here.rows)
    lines = Path("bad.csv").read_text(encoding="utf-8").splitlines()
    lines[4] = "True,one"
    Path("bad.csv").write_text("\n".join(lines), encoding="utf-8")
    return "bad.csv"


@pytest.mark.usefixtures("here")
def test_a_run_keeps_what_its_ids_mean(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in Path("data/vocabularies").iterdir():
        assert (Path("run/vocabularies") / file.name).samefile(file)
    for name in ("encoding.yaml", "card.json"):
        assert Path("run", name).read_bytes() == Path("data", name).read_bytes()

    def train(*arguments: str) -> tuple[int, str]:
        settings = ("run_dir=other", "training.max_steps=2", "checkpoint.every_steps=1", "data.path=again")
        Path("other/result.json").unlink(missing_ok=True)
        return run("train", "experiment.yaml", *settings, *arguments)

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    shutil.copytree("data", "again")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        assert train()[0] == 0
    copied = Path("other/vocabularies/item.parquet")
    assert copied.read_bytes() == Path("again/vocabularies/item.parquet").read_bytes()
    inode = copied.stat().st_ino

    # The same numbers of rows everywhere, but other values.
    rows = [row | {"user": row["user"] and row["user"].replace("1", "one")} for row in draw(1)]
    write_parquet(Path("renamed.parquet"), rows)
    shutil.rmtree("again")
    prepare(Path("renamed.parquet"), Path("again"))
    files = [Path(folder, "vocabularies/user_id.parquet") for folder in ("again", "other")]
    users = [pq.read_table(file)["value"].to_pylist() for file in files]
    at = next(at for at, (one, other) in enumerate(zip(*users, strict=True), 1) if one != other)
    differs = f"id {at} of table 'user_id' is {users[0][at - 1]!r} here and {users[1][at - 1]!r} in the run"
    code, said = train("--resume")
    assert code == 2
    assert f"the data changed since it was written, so its step means other rows ({differs})" in said
    like = "encode the raw rows as the run's were: `cetnet prepare csv|parquet ... --like other`"
    for command in (["evaluate"], ["predict", "--out", "no.parquet"]):
        code, said = run(*command, "other", "again")
        assert (code, said) == (2, f"cetnet: again: {differs}; {like}\n")

    # A run of before that has none goes on, and gets them; one that has copies keeps them.
    shutil.rmtree("again")
    shutil.copytree("data", "again")
    link = os.link
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda a, b: no_links() if "again" in str(a) else link(a, b))
        assert train("--resume")[0] == 0
    assert copied.stat().st_ino == inode
    shutil.rmtree("other/vocabularies")
    Path("other/encoding.yaml").unlink()
    assert train("--resume")[0] == 0
    assert copied.samefile("again/vocabularies/item.parquet")

    # It isn't taken for a dataset, to be replaced by another.
    code, said = run(
        "prepare", "random", "--schema=data/schema.yaml", "--rows=50", "--out=other", "--overwrite"
    )
    assert code == 2
    assert "other is not a prepared dataset (a run), so it is not overwritten" in said


def test_what_is_new_to_the_model_is_said(here: Place, run: Run) -> None:
    new = [row | {"user": row["user"] and f"new {row['user']}"} for row in here.rows]
    write_parquet(Path("new.parquet"), new)
    left = Path(".cetnet-csv-left")
    left.mkdir()
    (left / "lock").touch()
    write_csv(Path("new.csv"), new)
    for name in ("new.parquet", "new.csv"):
        code, said = run("predict", "run", name, "--out", "scores.parquet")
        assert code == 0
        assert re.search(r"since training, .*new values of `user_id` went from \d+\.\d% to 100\.0%", said)
    assert not left.exists()  # of a process that was killed


@pytest.mark.usefixtures("here")
def test_a_run_folder_is_of_its_checkpoints(run: Run) -> None:
    shutil.copytree("run", "mixed")
    schema = yaml.safe_load(Path("mixed/schema.yaml").read_text(encoding="utf-8"))
    schema["vocabularies"]["item"] = "0" * 16
    Path("mixed/schema.yaml").write_text(yaml.safe_dump(schema), encoding="utf-8")
    shutil.copytree("by hand", "mixed day")
    shutil.copy("mixed/schema.yaml", "mixed day/schema.yaml")
    code, said = run("evaluate", "mixed", "mixed day")
    assert code == 2
    assert "mixed: its checkpoints were trained with other vocabularies than its schema.yaml says" in said
    assert run("export", "mixed", "--out", "exported")[0] == 2
    assert not Path("exported").exists()


def test_rows_of_a_run_without_an_encoding(tmp_path: Path) -> None:
    schema = write_dataset(tmp_path / "data", {"test": 100}, row_group_size=30)
    schema = schema.model_copy(update={"hashed": ("user",)})
    save_yaml(tmp_path / "data/schema.yaml", schema)
    (tmp_path / "run").mkdir()
    settings = run_settings(tmp_path / "data", tmp_path / "run")
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    save_yaml(tmp_path / "run/schema.yaml", schema)
    shutil.copytree(tmp_path / "data/test", tmp_path / "logs")

    raw = raw_split(tmp_path / "run", find_rows(tmp_path / "logs", None), labelled=True)
    prepared = Dataset(tmp_path / "data", "test")
    for one, other in zip(raw.row_groups, prepared.row_groups, strict=True):
        rows, expected = (
            each.read([Piece(group, 0, group.num_rows)]) for each, group in ((raw, one), (prepared, other))
        )
        np.testing.assert_array_equal(rows.numbers, expected.numbers)
        np.testing.assert_array_equal(rows.ids, expected.ids)
        np.testing.assert_array_equal(rows.lists[0].ids, expected.lists[0].ids)

    known = schema.model_copy(update={"vocabularies": {"item": "0"}})
    save_yaml(tmp_path / "run/schema.yaml", known)
    with pytest.raises(UserError, match="which says what turns raw rows into ids"):
        raw_split(tmp_path / "run", find_rows(tmp_path / "logs", None), labelled=True)


@given(st.integers(1, 40), st.integers(1, 9), st.lists(st.integers(0, 39), max_size=12), st.integers(1, 3))
@settings(max_examples=40)
def test_blocks_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, block_rows: int, asked: list[int], threads: int
) -> None:
    file = tmp_path_factory.mktemp("blocks") / "file.parquet"
    table = pa.table({"a": np.arange(rows), "b": [[i] * (i % 3) for i in range(rows)]})
    pq.write_table(table, file, row_group_size=rows, data_page_size=16)
    reader = BlockReader(partial(pq.ParquetFile, file), 0, ["b"], block_rows)
    blocks = -(-rows // block_rows)
    numbers = [*(number % blocks for number in asked), *range(blocks)]
    with ThreadPoolExecutor(threads) as pool:
        for number, block in zip(numbers, pool.map(reader.read, numbers), strict=True):
            assert block["b"].to_pylist() == table["b"].slice(number * block_rows, block_rows).to_pylist()
