"""What `prepare csv` says of files that are not what they should be, and what it reads as people write it."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from tests.trainer.prepare.test_tabular import read

SCHEMA: dict[str, Any] = {
    "label": "click",
    "features": [
        {"name": "item", "kind": "categorical"},
        {"name": "history", "kind": "sequence", "table": "item", "max_length": 3},
        {"name": "price", "kind": "dense"},
    ],
}
HEADER = "click,item,history,price\n"
LINES = [f"{i % 2},i{i % 7},i{i % 5}|i{i % 3},{i}\n" for i in range(40)]


def prepare(folder: Path, content: bytes | str, name: str = "log.csv", **keys: Any) -> list[dict[str, Any]]:
    """The prepared rows of all splits, in the order of the raw ones if there is a column `price` that has it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "raw.yaml").write_text(yaml.safe_dump(SCHEMA | keys), encoding="utf-8")
    out = folder / "out"
    prepare_tabular("csv", path, out, folder / "raw.yaml", overwrite=True, workers=1)
    rows = [row for part in read(out).values() for row in part]
    return sorted(rows, key=lambda row: row.get("price", 0))


def refused(folder: Path, content: bytes | str, *parts: str, name: str = "log.csv", **keys: Any) -> str:
    """The message of the refusal, which holds the file's name and `parts`."""
    with pytest.raises(UserError) as caught:
        prepare(folder, content, name, **keys)
    message = str(caught.value)
    assert all(part in message for part in (name, *parts)), message
    assert "\n" not in message
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return message


def log(*lines: str, at: int = 10) -> str:
    """40 good lines with others after the tenth."""
    return "".join([HEADER, *LINES[:at], *lines, *LINES[at:]])


@pytest.mark.parametrize(
    ("line", "keys", "parts"),
    [
        ('0,"5\\" disc",i1,1\n', {}, ["row 11 (line 12): text after a closing quote", "`escape: '\\'`"]),
        ('0,5" disc,i1,1\n', {}, ["row 11 (line 12): a quote inside a value", "`quote: null`"]),
        ('0,"disc,i1,1\n', {}, ["row 11 (line 12): a quote that opens here is not closed", "`quote: null`"]),
        ('0,"a"b,i1,1\n', {}, ["row 11 (line 12): text after a closing quote", "double quotes"]),
        ("0,i1\n", {}, ["row 11 (line 12): expected 4 columns as in the header, found 2"]),
        (
            "0,i1,i1,1,5\n",
            {},
            ["row 11 (line 12): expected 4 columns as in the header, found 5", "in quotes"],
        ),
        ('0,"a,b",i1,1\n', {"quote": None}, ["row 11", "found 5", "leave out `quote: null`"]),
        ("0,i1\n0,i1,i1,1,5,6\n", {}, ["row 11 (line 12): expected 4 columns as in the header, found 2"]),
        ("0,i1,i1,1,5,6\n0,i1\n", {"quote": None}, ["row 11 (line 12)", "found 6"]),
        ("0,i1,i1\r,1\n", {}, ["row 11 (line 12): a carriage return without a line feed"]),
        ("0,i1,i\0,1\n", {}, ["row 11 (line 12): a NUL byte", "utf-16"]),
        ('\n\n0,"a\nb",i1,1\n0,i1\n', {}, ["row 12 (line 16): expected 4 columns"]),
        ("2,i1,i1,1\n", {}, ["column 'click', row 11: expected 0 or 1", "found '2'"]),
        (
            "0,i1,i1,\\N\n",
            {},
            ["column 'price', row 11: expected a finite number", "`null_values`", "found '\\\\N'"],
        ),
        ('0,i1,"[1, 2, 3]",1\n', {}, ["column 'history', row 11", "'|' between them", "found '[1, 2, 3]'"]),
        ("0,i1,[1 2],1\n", {}, ["column 'history', row 11"]),
        ("0,i1,['a'],1\n", {}, ["column 'history', row 11"]),
        ('0,i1,"{1,2}",1\n', {}, ["column 'history', row 11"]),
        ('0,i1,"(1, 2)",1\n', {}, ["column 'history', row 11"]),
        ("0,i1,[1|2],1\n", {}, ["column 'history', row 11"]),
        ("0,i1,[],1\n", {}, ["column 'history', row 11"]),
        ("0,i1,i1,1\n-1,i1,i1,1\n", {}, ["column 'click' has both -1 in", "row 12", "0 in", "row 1:"]),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, line: str, keys: dict[str, Any], parts: list[str]) -> None:
    refused(tmp_path, log(line), *parts, **keys)


def test_bytes_that_are_not_the_encoding(tmp_path: Path) -> None:
    latin = log("0,\xe9t\xe9,i1,1\n").encode("latin-1")
    refused(tmp_path, latin, r"row 11 (line 12): b'\xe9' is not utf-8: set `encoding`")
    assert len(prepare(tmp_path, latin, encoding="latin-1")) == 41
    (tmp_path / "out").rename(tmp_path / "latin")
    assert len(prepare(tmp_path, latin.decode("latin-1"))) == 41
    assert (tmp_path / "out/schema.yaml").read_bytes() == (tmp_path / "latin/schema.yaml").read_bytes()
    (tmp_path / "out").rename(tmp_path / "utf-8")
    wide = log().encode("utf-16")
    refused(tmp_path, wide, "begins as utf-16 text, not as utf-8: set `encoding: utf-16`")
    refused(
        tmp_path, log().encode("utf-8-sig"), "begins as utf-8 text", "leave out `encoding`", encoding="cp1252"
    )
    refused(tmp_path, wide[:-3] + b"\xd8", "row 40 (line 41): bytes that are not utf-16", encoding="utf-16")
    refused(tmp_path, log(), "encoding 'utf-9'", name="raw.yaml", encoding="utf-9")


def test_a_file_cut_short(tmp_path: Path) -> None:
    refused(tmp_path, log()[:-9], "row 40 (line 41)", "was the file cut short?")
    packed = gzip.compress(log().encode(), mtime=0)
    message = "the compressed file is damaged or cut short here"
    refused(tmp_path, packed[:-20], message, "row ", name="log.csv.gz")
    refused(tmp_path, packed[:-8] + bytes(4) + packed[-4:], message, name="log.csv.gz")
    refused(tmp_path, "", "is empty, without even a header")
    refused(tmp_path, HEADER, "there are no rows")


def test_files_that_are_not_text(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("log.csv", log())
    refused(tmp_path, archive.getvalue(), "zip archive", "unpack it")
    table = io.BytesIO()
    pl.DataFrame({"click": [0, 1]}).write_parquet(table)
    refused(tmp_path, table.getvalue(), "is a Parquet file: use `cetnet prepare parquet`")
    # whatever it is called
    assert len(prepare(tmp_path, gzip.compress(log().encode(), mtime=0), name="log")) == 40
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.csv.bz2").write_bytes(bz2.compress((HEADER + "".join(LINES[:20])).encode()))
    (tmp_path / "raw/b.tsv.xz").write_bytes(lzma.compress((HEADER + "".join(LINES[20:])).encode()))
    before = read(tmp_path / "out")
    prepare_tabular(
        "csv", tmp_path / "raw", tmp_path / "out", tmp_path / "raw.yaml", overwrite=True, workers=1
    )
    assert read(tmp_path / "out") == before


def test_headers(tmp_path: Path) -> None:
    text = log().removeprefix(HEADER)
    refused(
        tmp_path, "click, item,history,price\n" + text, "has no column 'item'; it has", "' item'", "`column`"
    )
    refused(tmp_path, "click,item,item,history\n" + text, "the header has the column 'item' twice")
    refused(tmp_path, "click;item;history;price\n", "is `delimiter` right?")
    refused(
        tmp_path, text, "has no column 'click'; it has '0', 'i0'", "give the names of the columns as `header`"
    )
    refused(
        tmp_path,
        text,
        "row 1 (line 1): expected 5 columns as in `header`, found 4",
        header=["click", "item", "history", "price", "more"],
    )
    refused(
        tmp_path, 'click,"item,history,price\n' + text, "the header: a quote that opens here is not closed"
    )
    refused(
        tmp_path, text, "the header has the column 'item' twice", header=["click", "item", "item", "history"]
    )
    # columns that nobody reads may have the same name
    rows = prepare(tmp_path, "x,x,click,item,history,price\n" + "".join(f"a,b,{line}" for line in LINES))
    assert len(rows) == 40
    assert len(prepare(tmp_path, '"click","item","history\n","price"\n' + text, features=[
        SCHEMA["features"][0], {"name": "history", "column": "history\n", "kind": "sequence", "max_length": 3},
        SCHEMA["features"][2],
    ])) == 40  # fmt: skip


def test_what_people_write(tmp_path: Path) -> None:
    # the same rows, in the forms of Spark (escapes), Hive (null markers), pandas (lists, blanks), spreadsheets
    plain = prepare(tmp_path, log('0,"5"" disc",,\n'))
    assert [len(plain), plain[1]["price"]] == [41, 0.0]
    spark = prepare(tmp_path, log('0,"5\\" disc",,\n'), escape="\\")
    hive = prepare(tmp_path, log('0,"5\\" disc",\\N,NA\n'), escape="\\", null_values=["\\N", "NA"])
    tabs = prepare(
        tmp_path, log('0,5" disc,NA,\n').replace(",", "\t"), delimiter="\t", quote=None, null_values=["NA"]
    )
    excel = prepare(tmp_path, "\ufeff" + log('0,"5"" disc",,\n').replace("\n", "\r\n") + "\r\n")
    quoted = prepare(tmp_path, log('"0","5"" disc","",""\n'))
    assert spark == plain and hive == plain and tabs == plain and excel == plain and quoted == plain  # noqa: PT018
    # a marker in a list is a missing value, not another id
    marked = prepare(tmp_path, log("0,i1,i1|\\N,1\n", "0,i1,i1|,2\n"), escape="\\", null_values=["\\N"])
    first, second = (row["history"] for row in marked if row["price"] in (1, 2) and len(row["history"]) == 2
                     and 0 in row["history"])  # fmt: skip
    assert first == second


@pytest.mark.parametrize(
    "labels", [("0", "1"), ("0.0", "1.0"), ("False", "true"), ("-1", "1"), ("-1.0", "1e0")]
)
def test_labels(tmp_path: Path, labels: tuple[str, str]) -> None:
    lines = (f"{labels[int(line[0])]}{line[1:]}" for line in LINES)
    assert [row["click"] for row in prepare(tmp_path, HEADER + "".join(lines))] == [i % 2 for i in range(40)]


@pytest.mark.usefixtures("small_sizes")
def test_the_first_mistake_of_many_chunks(tmp_path: Path) -> None:
    lines = [f"{i % 2},i{i % 7},i{i % 5}|i{i % 3},{i}\n" for i in range(400)]
    broken = '0,"5\\" disc",i1,1\n'
    for mistakes, message in (
        ({151: broken, 260: broken, 390: "2,i1,,1\n"}, "row 152 (line 153): text after a closing quote"),
        ({151: "0,i1,,dear\n", 152: broken}, "column 'price', row 152: expected a finite number"),
        ({390: "-1,i1,,1\n"}, "both -1 in"),
        ({390: "-1,i1,,1\n"}, "row 391, and 0 in"),
    ):
        text = HEADER + "".join(mistakes.get(i, line) for i, line in enumerate(lines))
        refused(tmp_path, text, message)
        refused(tmp_path, gzip.compress(text.encode(), mtime=0), message)
    refused(
        tmp_path,
        HEADER + "".join(lines) + '0,"' + "i1,,1\n" * 600_000,
        "row 401 (line 402): a quote that opens",
    )


def test_labels_of_two_files(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/b.csv").write_text(HEADER + "1,i1,,0\n-1,i1,,0\n", encoding="utf-8")
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")
    (tmp_path / "raw/a.csv").write_text(HEADER + "".join(LINES), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"both -1 in .*b\.csv, row 2, and 0 in .*a\.csv, row 1: give 0 and 1"
    ):
        prepare_tabular("csv", tmp_path / "raw", tmp_path / "out", tmp_path / "raw.yaml")


def test_categories_in_parquet_are_texts(tmp_path: Path) -> None:
    plain = prepare(tmp_path, log())
    frame = pl.read_csv(log().encode(), infer_schema=False).with_columns(pl.all().cast(pl.Categorical))
    frame.write_parquet(tmp_path / "log.parquet")
    prepare_tabular(
        "parquet", tmp_path / "log.parquet", tmp_path / "out", tmp_path / "raw.yaml", overwrite=True
    )
    rows = [row for part in read(tmp_path / "out").values() for row in part]
    assert sorted(rows, key=lambda row: row["price"]) == plain


def test_columns_of_other_names(tmp_path: Path) -> None:
    features = [
        {"name": "item_id", "column": "item.id", "kind": "categorical", "table": "item"},
        {"name": "seen", "column": "seen items", "kind": "sequence", "table": "item", "max_length": 3},
        {"name": "price", "column": "price (€)", "kind": "dense"},
    ]
    header = "click,item.id,seen items,price (€)\n"
    plain = prepare(tmp_path, log())
    renamed = prepare(tmp_path, header + "".join(LINES), features=features)
    assert [list(row.values()) for row in renamed] == [list(row.values()) for row in plain]
    (tmp_path / "out").rename(tmp_path / "csv")
    refused(
        tmp_path, header + "".join(LINES) + "0,i1,,dear\n", "column 'price (€)', row 41", features=features
    )
    refused(tmp_path, log(), "has no column 'item.id'; it has 'click', 'item'", features=features)
    clash = [*features, {"name": "leak", "column": "click", "kind": "dense"}]
    refused(
        tmp_path,
        header,
        "feature 'leak' reads column 'click', which is the label",
        name="raw.yaml",
        features=clash,
    )
    frame = pl.read_csv((header + "".join(LINES)).encode(), schema_overrides={"click": pl.Int64})
    frame = frame.with_columns(pl.col("seen items").str.split("|"))
    frame.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(SCHEMA | {"features": features}), encoding="utf-8")
    prepare_tabular("parquet", tmp_path / "log.parquet", tmp_path / "out", tmp_path / "raw.yaml")
    assert read(tmp_path / "out") == read(tmp_path / "csv")


FLOATS = [f"{i % 2},{i % 7}.0,{i % 5}|{i % 3},{i}\n" for i in range(40)]


@pytest.mark.parametrize("more", [{}, {"hash": 100}])
def test_integers_that_pandas_wrote_as_floats(tmp_path: Path, more: dict[str, int]) -> None:
    features = [feature | (more if feature["kind"] != "dense" else {}) for feature in SCHEMA["features"]]
    text = HEADER + "".join(FLOATS)
    refused(
        tmp_path, text, "ids of table 'item' are written as '0.0' in column 'item' of", "and as '0' in column "
        "'history' of", "`whole_floats`", features=features,
    )  # fmt: skip
    integers = prepare(tmp_path, text.replace(".0", ""), features=features)
    assert prepare(tmp_path, text, features=features, whole_floats="integer") == integers
    apart = prepare(tmp_path, text, features=features, whole_floats="text")
    assert [row["history"] for row in apart] != [row["history"] for row in integers] or apart != integers
    # one column alone may be written so, and another file of it may not
    alone = [features[0], features[2]]
    assert len(prepare(tmp_path, text, features=alone)) == 40
    (tmp_path / "out").rename(tmp_path / "alone")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.csv").write_text(text, encoding="utf-8")
    (tmp_path / "raw/b.csv").write_text(text.replace(".0", ""), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"'0\.0' in column 'item' of .*a\.csv, and as '0' in column 'item' of .*b\.csv"
    ):
        prepare_tabular("csv", tmp_path / "raw", tmp_path / "out", tmp_path / "raw.yaml")


def test_floats_in_tables_of_given_rows(tmp_path: Path) -> None:
    text = HEADER + "".join(FLOATS)
    parts = ["column 'item', row 1: expected ids from 0 to 6", "`whole_floats: integer`", "found '0.0'"]
    refused(tmp_path, text, *parts, tables={"item": 7})
    rows = prepare(tmp_path, text, tables={"item": 7}, whole_floats="integer")
    assert [row["item"] for row in rows] == [i % 7 for i in range(40)]
    lossy = HEADER + "".join(FLOATS) + "0,1.2345678901234568E+18,,40\n"
    refused(
        tmp_path,
        lossy,
        "column 'item', row 41: expected an integer with all of its digits",
        whole_floats="integer",
    )


def test_floats_beside_keys_of_given_vectors(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.ones((7, 2), np.float32))
    keys: dict[str, Any] = {
        "features": [SCHEMA["features"][0], SCHEMA["features"][2]],
        "pretrained": {"item": "vectors.npy"},
    }
    refused(tmp_path, HEADER + "".join(FLOATS), "'0.0' in column 'item' of", "as '0' in the keys of", **keys)
    rows = prepare(tmp_path, HEADER + "".join(FLOATS), whole_floats="integer", **keys)
    assert [row["item"] for row in rows] == [1 + i % 7 for i in range(40)]


def test_times(tmp_path: Path) -> None:
    written = {
        "1700000000": 1700000000,
        "-5": -5,
        "1700000000.0": 1700000000,
        "2024-03-01": 1709251200,
        "2024-03-01 10:00:00": 1709287200,
        "2024-03-01T10:00:00.999": 1709287200,
        "2024-03-01T10:00Z": 1709287200,
        "2024-03-01 10:00:00 UTC": 1709287200,
        "2024-03-01T10:00:00+02:00": 1709280000,
        "2024-03-01 10:00:00-0530": 1709307000,
    }
    lines = [f"{i % 2},{time},{i}\n" for i, time in enumerate([*written, *written, *written])]
    features = [{"name": "t", "column": "time", "kind": "categorical"}, SCHEMA["features"][2]]
    keys: dict[str, Any] = {"timestamp": "time", "features": features, "whole_floats": "text"}
    rows = prepare(tmp_path, "click,time,price\n" + "".join(lines), **keys)
    assert [row["time"] for row in rows] == [*written.values()] * 3
    (tmp_path / "out").rename(tmp_path / "times")
    for bad in ("noon", "2024-02-30", "2024-03-01 25:00:00", "1.7e9", "01/03/2024", ""):
        text = "click,time,price\n" + "".join(lines) + f"0,{bad},99\n"
        refused(tmp_path, text, "column 'time', row 31: expected integer seconds, or a date or time", **keys)


def test_groups_are_integers_only_as_these_are_written(tmp_path: Path) -> None:
    def groups(*names: str) -> list[int]:
        lines = [f"{i % 2},{names[i % len(names)]},{i}\n" for i in range(60)]
        features = [{"name": "user", "column": "who", "kind": "categorical"}, SCHEMA["features"][2]]
        rows = prepare(tmp_path, "click,who,price\n" + "".join(lines), group="who", features=features)
        assert json.loads((tmp_path / "out/card.json").read_text(encoding="utf-8"))["splits"]["train"]["rows"]
        return [row["who"] for row in rows[: len(names)]]

    assert groups(*map(str, range(20))) == list(range(20))
    assert groups("7", "07", "007", *map(str, range(10, 27)))[:3] == [20, 2, 1]  # numbered in order
    assert len(set(groups(*(str(2**63 + i) for i in range(20))))) == 20


def test_keys_of_given_vectors_that_are_floats(tmp_path: Path) -> None:
    pl.DataFrame({"key": [float(i) for i in range(7)], "vector": [[0.5, 1.0]] * 7}).write_parquet(
        tmp_path / "vectors.parquet"
    )
    keys: dict[str, Any] = {
        "features": [SCHEMA["features"][0], SCHEMA["features"][2]],
        "pretrained": {"item": "vectors.parquet"},
        "whole_floats": "integer",
    }
    with pytest.raises(
        UserError, match=r"vectors\.parquet: keys are written as '0\.0': write them as integers"
    ):
        prepare(tmp_path, HEADER + "".join(FLOATS), **keys)


def test_milliseconds_are_no_seconds(tmp_path: Path) -> None:
    def times(unit: int) -> str:
        return "click,item,history,price,ts\n" + "".join(
            f"{line.rstrip()},{(1_709_251_200 + i * 3600) * (unit if i > 30 else 1)}\n"
            for i, line in enumerate(LINES)
        )

    prepare(tmp_path, times(1), timestamp="ts")
    refused(tmp_path, times(1000), "'ts', row 32: expected seconds", "divide milliseconds", timestamp="ts")


def test_a_column_without_a_name(tmp_path: Path) -> None:
    header = ",click,item,history,price\n"
    lines = [f"{i},{line}" for i, line in enumerate(LINES)]
    assert prepare(tmp_path, header + "".join(lines)) == prepare(tmp_path, log(), name="plain.csv")
    for quote in ('"', None):
        short = header + "".join(lines[:7]) + "7,1,u\n" + "".join(lines[8:])
        refused(tmp_path, short, "row 8 (line 9): expected 5 columns as in the header, found 3", quote=quote)
    more = header.lstrip(",") + "".join(lines)
    refused(tmp_path, more, "row 1 (line 2): expected 4 columns", "give all columns a name")
