"""New rows by an earlier dataset's vocabularies, and these with new values behind the old ones."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cetnet.models.schema import Schema
from cetnet.trainer.cli import app
from cetnet.trainer.data.dataset import Dataset, load_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from cetnet.trainer.prepare.engine.tasks import Resources, TaskSizes
from tests.trainer.prepare.conftest import SMALL
from tests.trainer.prepare.days import Oracle, Rows, check_rows, draw, first_day, write_rows
from tests.trainer.prepare.test_engine import tree


@pytest.fixture(scope="module", params=["csv", "parquet"])
def day_one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    folder = tmp_path_factory.mktemp("day_one")
    return first_day(folder, request.param, draw(1, 300, 0))


@pytest.fixture(scope="module")
def day_csv(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    return first_day(tmp_path_factory.mktemp("day_csv"), "csv", draw(1, 300, 0))


def prepare_like(folder: Path, name: str, rows: Rows, like: Path, kind: str = "csv", **options: Any) -> Path:
    """A dataset of these rows."""
    raw, format = folder / f"{name}.{kind}", Path(f"x.{kind}").suffix[1:]
    without = options.pop("without", ())
    if not raw.exists():
        write_rows(raw, rows, without)
    given: Any = format
    prepare_tabular(given, raw, folder / name, like=like, command="c", **{"workers": 1, **options})
    return folder / name


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_next_day(tmp_path: Path, day_one: tuple[Path, Oracle], kind: str) -> None:
    first, oracle = day_one
    rows = draw(2, 200, 7)
    random.Random(1).shuffle(rows)  # not in the order of time
    out = prepare_like(tmp_path, "next", rows, first, kind)
    check_rows(out / "test", rows, oracle)
    others = pq.read_table(out / "test").select(["click", "user_group", "time"]).to_pylist()
    assert others == [{"click": r["click"], "user_group": r["user"], "time": r["time"]} for r in rows]
    oracle.check_vocabularies(out)
    for path in sorted((first / "vocabularies").iterdir()):
        assert (out / "vocabularies" / path.name).read_bytes() == path.read_bytes()
    assert (out / "encoding.yaml").read_bytes() == (first / "encoding.yaml").read_bytes()

    def but_lengths(schema: Schema) -> dict[str, Any]:
        return schema.model_dump(exclude={"features": {"__all__": {"mean_length"}}})

    assert but_lengths(load_schema(out)) == but_lengths(load_schema(first))
    lengths = {feature.name: feature.mean_length for feature in load_schema(out).features}
    assert lengths["history"] == round(sum(len(row["history"][-3:]) for row in rows) / 200, 4)


def test_the_days_rows_again_are_as_they_were(tmp_path: Path, day_one: tuple[Path, Oracle]) -> None:
    first, oracle = day_one
    rows = draw(1, 300, 0)
    out = prepare_like(tmp_path, "again", rows, first, split="time:0.8,0.1,0.1")
    oracle.check_vocabularies(out)
    for split in ("train", "validation", "test"):
        assert pq.read_table(out / split).equals(pq.read_table(first / split))
    drift = json.loads((out / "card.json").read_text())["drift"]
    assert max(abs(change) for each in drift for change in each["changes"].values()) < 0.3


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 3, 40]))
def test_growth_and_its_growth(tmp_path_factory: pytest.TempPathFactory, seed: int, window: int) -> None:
    folder = tmp_path_factory.mktemp("growth")
    first, oracle = first_day(folder, "parquet", draw(seed, 100, 0))
    days = [draw(seed + day, 60, window * day) for day in (1, 2)]
    like = first
    for number, day in enumerate(days):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Resources, "sizes", lambda _: SMALL)
            small = prepare_like(folder, f"small{number}", day, like, grow=True, split="time:0.8,0.1,0.1")
            patch.setattr(Resources, "sizes", lambda _: TaskSizes(10**6, 10**9))
            raw, grown = folder / f"small{number}.csv", folder / f"grown{number}"
            prepare_tabular(
                "csv", raw, grown, None, "time:0.8,0.1,0.1", like=like, grow=True, command="c", workers=1
            )
        if number == 0:  # the second is like another folder, whose name is in the card
            assert tree(small) == tree(grown)
        oracle.grow(day[:48])
        oracle.check_vocabularies(grown)
        for split, part in (("train", day[:48]), ("validation", day[48:54]), ("test", day[54:])):
            check_rows(grown / split, part, oracle)
            check_rows(small / split, part, oracle)
        like = grown


def test_an_interrupted_growth_goes_on(
    tmp_path: Path, day_csv: tuple[Path, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resources, "sizes", lambda _: SMALL)
    rows, first = draw(3, 100, 9), tmp_path / "first"
    shutil.copytree(day_csv[0], first)
    whole = tree(prepare_like(tmp_path, "next", rows, first, grow=True))
    rename, renames = Path.rename, 0

    def interrupting(after: float) -> Callable[[Path, Path], Path]:
        def interrupted(path: Path, target: Path) -> Path:
            nonlocal renames
            renames += 1
            if renames > after:
                raise KeyboardInterrupt
            return rename(path, target)

        return interrupted

    monkeypatch.setattr(Path, "rename", interrupting(math.inf))
    prepare_like(tmp_path, "next", rows, first, grow=True, overwrite=True)
    for after in random.Random(1).sample(range(1, renames), 4):
        shutil.rmtree(tmp_path / "next")
        renames = 0
        monkeypatch.setattr(Path, "rename", interrupting(after))
        with pytest.raises(KeyboardInterrupt):
            prepare_like(tmp_path, "next", rows, first, grow=True)
        monkeypatch.setattr(Path, "rename", rename)
        assert tree(prepare_like(tmp_path, "next", rows, first, grow=True)) == whole


def test_rows_to_be_scored_need_no_label(tmp_path: Path, day_csv: tuple[Path, Oracle]) -> None:
    first, oracle = day_csv
    rows = draw(4, 50, 3)
    out = prepare_like(tmp_path, "next", rows, first, "parquet", without=("click", "time"))
    check_rows(out / "test", rows, oracle)
    assert "click" not in pq.read_schema(next((out / "test").iterdir())).names
    assert load_schema(out).timestamp is None
    assert Dataset(out, "test", labelled=False).num_rows == 50
    card = json.loads((out / "card.json").read_text())
    assert card["splits"]["test"] == {"rows": 50, "positives": None, "positive_rate": None}
    assert card["notes"][:2] == [
        "The rows have no column `click` (label): they can be scored (`cetnet predict`), not evaluated.",
        "The rows have no column `time` (timestamp): nothing is known of their time.",
    ]
    with pytest.raises(UserError, match="no column 'click' with the label"):
        prepare_like(tmp_path, "grown", rows, first, without=("click",), grow=True)
    write_rows(tmp_path / "some/a.csv", rows)
    write_rows(tmp_path / "some/b.csv", rows, without=("click",))
    with pytest.raises(UserError, match=r"b\.csv has no column 'click' \(the label\), and .*a\.csv has"):
        prepare_tabular("csv", tmp_path / "some", tmp_path / "out", like=first, workers=1)


def test_what_changed_since_training(
    tmp_path: Path, day_csv: tuple[Path, Oracle], capsys: pytest.CaptureFixture[str]
) -> None:
    first, oracle = day_csv
    train, rows = draw(1, 300, 0)[:240], draw(5, 80, 20)
    out = prepare_like(tmp_path, "next", rows, first)
    card = json.loads((out / "card.json").read_text())

    def share(of: Rows, name: str) -> float:
        ids = [oracle.encode(row)[name] for row in of]
        flat = [id for row in ids for id in row] if isinstance(ids[0], list) else ids
        return flat.count(0) / len(flat)

    found = {each["feature"]: each for each in card["drift"]}
    for name in ("user", "item", "tags", "history", "page"):
        assert found[name]["training"]["unknown"] == pytest.approx(share(train, name))
        assert found[name]["now"]["unknown"] == pytest.approx(share(rows, name))
    lengths = [[len(row["history"][-3:]) for row in of] for of in (train, rows)]
    assert [found["history"][when]["mean_length"] for when in ("training", "now")] == [
        pytest.approx(sum(each) / len(each)) for each in lengths
    ]
    for name in ("price", "age"):
        for when, of in (("training", train), ("now", rows)):
            assert found[name][when]["missing"] == sum(row[name] is None for row in of) / len(of)
            mean = sum(oracle.encode(row)[name].expected for row in of) / len(of)
            assert found[name][when]["mean"] == pytest.approx(mean, rel=1e-4, abs=1e-7)
    changes = [max(map(abs, each["changes"].values())) for each in card["drift"]]
    assert changes == sorted(changes, reverse=True)
    told = capsys.readouterr().err
    assert told.startswith("warning: since training, ")
    assert "new values of `user` went from 0.0% to" in told
    assert "| `user` | 0.00% |" in (out / "README.md").read_text()
    # What is like the result is compared with the same rows, and what grew with its own.
    again = json.loads((prepare_like(tmp_path, "again", rows, out) / "card.json").read_text())
    assert again["drift"] == card["drift"]
    grown = prepare_like(tmp_path, "grown", rows, first, grow=True)
    assert json.loads((grown / "card.json").read_text())["drift"] == card["drift"]
    after = json.loads((prepare_like(tmp_path, "after", rows, grown) / "card.json").read_text())
    assert all(change == 0 for each in after["drift"] for change in each["changes"].values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"like": None}, "give --schema, or --like"),
        ({"like": None, "grow": True}, "--grow needs --like"),
        ({"schema_file": Path("raw.yaml")}, "--schema and --like: give one of them"),
        ({"like": Path("none")}, "--like none: no such folder"),
        ({"split": "tomorrow"}, "or one of train, validation, test for all rows"),
        ({"grow": True, "split": "test"}, "values get ids by the rows of train, and there are none"),
        ({"out": "first"}, "is --out, too"),
    ],
)
def test_options_that_contradict(
    tmp_path: Path, day_csv: tuple[Path, Oracle], options: dict[str, Any], message: str
) -> None:
    write_rows(tmp_path / "next.csv", draw(2, 9, 0))
    out = day_csv[0] if options.pop("out", "") else tmp_path / "out"
    with pytest.raises(UserError, match=message):
        prepare_tabular("csv", tmp_path / "next.csv", out, **{"like": day_csv[0], "workers": 1, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["next.csv"]


def test_what_rows_cannot_be_like(tmp_path: Path, day_csv: tuple[Path, Oracle]) -> None:
    rows, broken = draw(2, 9, 0), tmp_path / "broken"

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            prepare_like(tmp_path, "next", rows, broken)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "next/"))]

    shutil.copytree(day_csv[0], broken)
    file = broken / "vocabularies/page.parquet"
    pages = pq.read_table(file)
    values = pages["value"].to_pylist()
    file.unlink()
    refused(r"page\.parquet: no such file, the vocabulary of table 'page'")
    pq.write_table(pages.slice(1), file)
    refused(r"is not the vocabulary of table 'page' in schema\.yaml")
    pq.write_table(pages.set_column(0, "value", [[values[1], values[0], *values[2:]]]), file)
    refused(r"page\.parquet is not the vocabulary of the schema\.yaml there: it was changed")
    pq.write_table(pages.set_column(1, "id", [[*range(len(values))]]), file)
    refused(r"page\.parquet is damaged")
    pq.write_table(pages.set_column(0, "value", [[b"\xff"] * len(values)]), file)
    refused(r"page\.parquet cannot be read as a vocabulary")
    file.write_bytes(b"PAR1")
    refused(r"page\.parquet cannot be read as a vocabulary")
    encoding = (broken / "encoding.yaml").read_text()
    (broken / "encoding.yaml").write_text(encoding.replace("whole_floats: integer", "whole_floats: text"))
    refused(r"schema\.yaml and encoding\.yaml are not of one dataset")
    (broken / "encoding.yaml").write_text(f"{encoding}transform: a.reader\n")
    refused(r"were read by a public dataset's own reader \(a\.reader\)")
    (broken / "encoding.yaml").unlink()
    refused(r"it has no encoding\.yaml, as datasets have that")


@pytest.mark.parametrize(("then", "now"), [("{}", "{}.0"), ("{}.0", "{}")])
@pytest.mark.parametrize("hash", [None, 50])
def test_numbers_written_in_another_form_would_all_be_unknown(
    tmp_path: Path, then: str, now: str, hash: int | None
) -> None:
    feature = {"name": "n", "kind": "categorical", "hash": hash}
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump({"label": "y", "features": [feature]}))
    for name, form in (("then", then), ("now", now)):
        lines = [f"{i % 2},{form.format(i % 7)}\n" for i in range(60)]
        (tmp_path / f"{name}.csv").write_text("".join(["y,n\n", *lines]))
    prepare_tabular("csv", tmp_path / "then.csv", tmp_path / "out", tmp_path / "raw.yaml", workers=1)
    with pytest.raises(
        UserError, match=r"column 'n' of .*now\.csv, and as '.*' in the rows that the model was trained"
    ):
        prepare_tabular("csv", tmp_path / "now.csv", tmp_path / "next", like=tmp_path / "out", workers=1)


def test_given_vectors_stay_as_they_are(tmp_path: Path) -> None:
    keys = ["a", "b", "c"]
    pl.DataFrame({"key": keys, "vector": [[1.0, 2.0]] * 3}).write_parquet(tmp_path / "vectors.parquet")
    features = [{"name": "n", "kind": "categorical"}, {"name": "picture", "kind": "categorical"}]
    schema = {"label": "y", "features": features, "pretrained": {"picture": "vectors.parquet"}}
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(schema))
    (tmp_path / "then.csv").write_text("y,n,picture\n" + "0,x,a\n1,y,b\n" * 20)
    (tmp_path / "now.csv").write_text("y,n,picture\n" + "0,z,c\n1,y,d\n" * 20)
    first, out = tmp_path / "first", tmp_path / "next"
    prepare_tabular("csv", tmp_path / "then.csv", first, tmp_path / "raw.yaml", workers=1)
    counts = pq.read_table(first / "vocabularies/picture.parquet")["count"].to_pylist()
    assert counts[2] == 0
    prepare_tabular("csv", tmp_path / "now.csv", out, like=first, grow=True, workers=1)
    assert pq.read_table(out / "train").select(["n", "picture"]).to_pylist()[:2] == [
        {"n": 3, "picture": 3},
        {"n": 2, "picture": 0},
    ]
    assert load_schema(out).tables == {"n": 4, "picture": 4}
    assert (out / "pretrained/picture.npy").read_bytes() == (first / "pretrained/picture.npy").read_bytes()
    assert "`picture`: tables of given vectors, which can't grow." in (out / "README.md").read_text()


def test_command(tmp_path: Path, day_csv: tuple[Path, Oracle]) -> None:
    first, oracle = day_csv
    rows, raw, out = draw(6, 30, 5), tmp_path / "next.csv", tmp_path / "out"
    write_rows(raw, rows)
    command = ["prepare", "csv", "--raw", str(raw), "--out", str(out), "--like", str(first), "--workers", "1"]
    result = CliRunner().invoke(app, [*command, "--split", "validation"])
    assert result.exit_code == 0, result.output
    check_rows(out / "validation", rows, oracle)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"validation", "vocabularies"}


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.text(), min_size=1, max_size=30),
    st.lists(st.none() | st.text(), min_size=1, max_size=30),
    st.booleans(),
)
def test_any_text(
    tmp_path_factory: pytest.TempPathFactory, then: list[str], now: list[str | None], grow: bool
) -> None:
    folder, now = tmp_path_factory.mktemp("text"), [*now, *then[:9]]
    spec = {"label": "y", "features": [{"name": "n", "kind": "categorical"}], "whole_floats": "text"}
    (folder / "raw.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    for name, values in (("then", then), ("now", now)):
        frame = pl.DataFrame({"y": [0] * len(values), "n": values}, schema_overrides={"n": pl.String})
        frame.write_parquet(folder / f"{name}.parquet")
    first, out = folder / "first", folder / "out"
    prepare_tabular("parquet", folder / "then.parquet", first, folder / "raw.yaml", "train", workers=1)
    prepare_tabular("parquet", folder / "now.parquet", out, like=first, grow=grow, workers=1)
    known = sorted({text for text in then if text}, key=str.encode)
    if grow:
        known += sorted({text for text in now if text and text not in known}, key=str.encode)
    expected = [1 + known.index(text) if text in known else 0 for text in now]
    assert pq.read_table(out / ("train" if grow else "test"))["n"].to_pylist() == expected
    assert pq.read_table(out / "vocabularies/n.parquet")["value"].to_pylist()[: len(known)] == known
