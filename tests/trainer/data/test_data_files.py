"""Which files of a directory are data: against pyarrow's reader of partitioned directories; a line for the rest."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.data.data_files import DataFile, Format, data_files, split_around
from cetnet.trainer.data.dataset import Dataset, Piece
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.input_files import input_files
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from cetnet.trainer.yaml_files import save_yaml
from tests.trainer.prepare.slow import loop_hash

TABLE = pa.table({"y": [0, 1, 1], "item": ["a", "b", "a"]})
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
value = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)


def put(path: Path, content: str | pa.Table = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        pq.write_table(content, path)
    return path


def names(files: list[DataFile], root: Path) -> list[str]:
    return [file.path.relative_to(root).as_posix() for file in files]


@settings(max_examples=25, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(value, value), min_size=1, max_size=5, unique=True))
def test_keys_are_those_that_pyarrow_finds(rows: list[tuple[str | None, str | None]]) -> None:
    with TemporaryDirectory() as directory:
        for number, row in enumerate(rows):
            parts = [NO_VALUE if cell is None else quote(cell, safe="") for cell in row]
            put(
                Path(directory, f"a={parts[0]}", f"b={parts[1]}", f"{number}.parquet"),
                pa.table({"n": [number]}),
            )
        schema = pa.schema([("a", pa.string()), ("b", pa.string())])
        hive = pa.dataset.partitioning(schema, flavor="hive")
        told = pa.dataset.dataset(directory, format="parquet", partitioning=hive).to_table().to_pylist()
        found = data_files(Path(directory), "parquet")
        assert [file.path for file in found] == sorted(file.path for file in found)
        read = [{"n": pq.ParquetFile(file.path).read()["n"][0].as_py(), **file.keys} for file in found]
        assert sorted(read, key=lambda row: row["n"]) == sorted(told, key=lambda row: row["n"])


@pytest.mark.parametrize(
    ("format", "files", "expected"),
    [
        ("csv", ["b.csv", "a.TSV", "c.csv.gz", "notes.md", "a.csv.MD5", "LICENSE"], ["a.TSV", "b.csv", "c.csv.gz"]),
        ("csv", ["b.csv", "_SUCCESS", "._b.csv", "_old.csv", ".b.csv.crc"], ["b.csv"]),
        ("csv", ["part-00001", "part-00000", "_SUCCESS", ".part-00000.crc", "README"], ["part-00000", "part-00001"]),
        ("csv", ["000000_0", "000001_0_copy_1"], ["000000_0", "000001_0_copy_1"]),
        ("csv", ["part-00000.gz", "part-00001.gz"], ["part-00000.gz", "part-00001.gz"]),
        ("csv", ["d=2/x.csv", "d=10/x.csv", "d=1/_temporary/x.csv", "d=1/.x.csv"], ["d=10/x.csv", "d=2/x.csv"]),
        ("csv", ["images/1.png", "a.csv", ".git/b.csv", "_old/b.csv"], ["a.csv"]),
        ("parquet", ["b.parquet", "a.parquet", "_metadata", "_x/y.parquet"], ["a.parquet", "b.parquet"]),
        ("parquet", ["part-00000", "000000_0", "any.pq", "_SUCCESS"], ["000000_0", "any.pq", "part-00000"]),
        ("parquet", ["_k=1/a.parquet", "_k=2/a.parquet"], ["_k=1/a.parquet", "_k=2/a.parquet"]),
    ],
)  # fmt: skip
def test_what_is_data(tmp_path: Path, format: Format, files: list[str], expected: list[str]) -> None:
    for name in files:
        put(tmp_path / name, TABLE if format == "parquet" else "y,item\n")
    assert names(data_files(tmp_path, format), tmp_path) == expected


def links(root: Path) -> None:
    put(root.parent / "elsewhere/x.csv", "y\n")
    put(root.parent / "other.csv", "y\n")
    root.mkdir()
    (root / "day=1").symlink_to(root.parent / "elsewhere", target_is_directory=True)
    (root / "day=2").mkdir()
    (root / "day=2/b.csv").symlink_to(root.parent / "other.csv")


def test_links_are_followed(tmp_path: Path) -> None:
    links(tmp_path / "raw")
    assert names(data_files(tmp_path / "raw", "csv"), tmp_path / "raw") == ["day=1/x.csv", "day=2/b.csv"]


def nothing(root: Path) -> None:
    root.mkdir()


def link_to(target: str, name: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        put(root / "a.csv", "y\n")
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(target)

    return make


def a_socket(root: Path) -> None:
    put(root / "a.csv", "y\n")
    before = Path.cwd()
    os.chdir(root)  # its path may be short only
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("b.csv")
    finally:
        os.chdir(before)


def of(*names: str, content: str | pa.Table = "y\n") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for name in names:
            put(root / name, content)

    return make


def not_utf8(root: Path) -> None:
    put(root / os.fsdecode(b"day=\xff") / "a.csv", "y\n")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (nothing, r"/raw holds no csv files \(.csv, .*\); it is empty"),
        (of("a.json", "b.avro"), r"raw holds no csv files .* but 2 others \(.avro, .json\): convert them to csv"),
        (of("a.parquet", content=TABLE), "others .*: read them with `cetnet prepare parquet`"),
        (of("part-0", content=TABLE), "holds no csv files"),
        (of("2024/a.csv", "2025/a.csv"), "has csv files in the subdirectory 2024 .*name it key=value"),
        (of("a.csv", "2024/part-00000"), "has csv files in the subdirectory 2024 .part-00000."),
        (of("2024/a.json"), "holds no csv files .*but subdirectories: 2024; give one of them"),
        (of("a.csv", "old/deep/b.csv"), r"the subdirectory old \(b.csv\), which would not be read"),
        (of("a.csv", "b.csv/part-0.csv"), "raw/b.csv is a directory, not a csv file: give it by itself"),
        (of("a.csv", "day=1/a.csv"), "a.csv is in directories with the keys none, but|with the keys day, but"),
        (of("a=1/b=1/x.csv", "a=2/x.csv"), "a=2/x.csv is in directories with the keys a, but .* with a, b"),
        (of("a=1/b=1/x.csv", "a=1/c=1/x.csv"), "keys a, c, but .* with a, b: put all files under the same keys"),
        (of("a=1/a=2/x.csv"), "a=1/a=2: the key 'a' is there twice"),
        (of("a.csv", "b.csv.zip"), r"raw has 1 csv files, and 1 others \(b.csv.zip\) that would not be read"),
        (of("a.csv", "part-00001", "b.json"), r"2 others \(b.json, part-00001\) that would not be read"),
        (of("a.csv", "b.parquet", "c.xlsx", "notes.md"), r"2 others \(b.parquet, c.xlsx\)"),
        (of("day=1/a.csv", "day=2/a.dat"), r"1 others \(a.dat\)"),
        (of("a.csv", "a.csv.gz"), "a.csv and a.csv.gz would both be read: keep one"),
        (of("_delta_log/0.json", "a.csv"), "raw is a Delta table, whose files hold replaced rows too"),
        (of("day=%ff/a.csv"), "day=%ff: its name is not UTF-8: rename it"),
        (not_utf8, "its name is not UTF-8: rename it"),
        (link_to("gone.csv", "b.csv"), "b.csv is a link to gone.csv, which is not there: restore it, or remove it"),
        (link_to("b.csv", "b.csv"), "b.csv is a link to b.csv, which is not there"),
        (link_to("..", "day=1/day2=3"), "day=1/day2=3 is a link to a directory that it is in: remove it"),
        (a_socket, "b.csv is no regular file: restore it, or remove it"),
    ],
)  # fmt: skip
def test_one_line_for_the_rest(tmp_path: Path, make: Callable[[Path], None], problem: str) -> None:
    root = tmp_path / "raw"
    make(root)
    with pytest.raises(UserError, match=problem) as told:
        input_files(root, "csv")
    assert str(root) in str(told.value)


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (
            ("train.csv", "train/a.csv", "test.csv"),
            "raw has train and train.csv, which would both be the train split",
        ),
        (("train.csv", "train.csv.gz", "test.csv"), "raw has train.csv and train.csv.gz, which would both"),
        (("train.csv", "test.csv"), "is split, but has no csv data for validation"),
        (("train/d=1/a.csv", "validation.csv", "test.csv"), "with the keys"),
    ],
)
def test_splits_that_are_not_clear(tmp_path: Path, made: tuple[str, ...], problem: str) -> None:
    of(*made)(tmp_path / "raw")
    with pytest.raises(UserError, match=problem):
        input_files(tmp_path / "raw", "csv")


def test_directories_that_are_named_as_splits_and_hold_no_data(tmp_path: Path) -> None:
    of("train/1.png", "test/2.png", "clicks.csv")(tmp_path / "all")
    assert names(list(input_files(tmp_path / "all", "csv")["all"]), tmp_path / "all") == ["clicks.csv"]
    of("train/1.png", "train.csv", "validation.csv", "test.csv")(tmp_path / "split")
    found = input_files(tmp_path / "split", "csv")
    assert [names(list(files), tmp_path / "split") for files in found.values()] == [
        ["train.csv"], ["validation.csv"], ["test.csv"]
    ]  # fmt: skip


def test_splits_of_partitioned_directories(tmp_path: Path) -> None:
    for split in ("train", "validation.csv", "test"):  # Spark makes directories that are named as files
        of(f"{split}/d=1/part-0", f"{split}/d=2/part-0", f"{split}/_SUCCESS")(tmp_path)
    found = input_files(tmp_path, "csv")
    assert {split: [dict(file.keys) for file in files] for split, files in found.items()} == {
        split: [{"d": "1"}, {"d": "2"}] for split in ("train", "validation", "test")
    }


DAYS = {
    "day=2024-01-01/place=a%2Fb": ("2024-01-01", "a/b"),
    f"day=2024-01-02/place={NO_VALUE}": ("2024-01-02", None),
}


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_keys_are_columns_of_raw_files(tmp_path: Path, format: Format) -> None:
    for folder in DAYS:
        file = put(tmp_path / "raw" / folder / f"part-0.{format}")
        if format == "csv":
            pl.read_parquet(file).write_csv(file)
    features = [{"name": name, "kind": "categorical"} for name in ("item", "day", "place")]
    schema = {"label": "y", "group": "day", "features": features}
    put(tmp_path / "raw.yaml", yaml.safe_dump(schema))
    for split in ("train", "validation", "test"):
        (tmp_path / "splits" / split).parent.mkdir(exist_ok=True)
        (tmp_path / "splits" / split).symlink_to(tmp_path / "raw", target_is_directory=True)
    prepare_tabular(format, tmp_path / "splits", tmp_path / "out", tmp_path / "raw.yaml")
    got = pl.read_parquet(tmp_path / "out/train/*.parquet")
    assert got["day"].to_list() == got["day_group"].to_list() == [1, 1, 1, 2, 2, 2]
    assert got["place"].to_list() == [1, 1, 1, 0, 0, 0]
    assert got["item"].to_list() == [1, 2, 1] * 2
    file = put(
        tmp_path / "raw/day=2024-01-01/place=a%2Fb" / f"part-0.{format}",
        TABLE.append_column("day", [[1] * 3]),
    )
    if format == "csv":
        pl.read_parquet(file).write_csv(file)
    with pytest.raises(
        UserError, match=r"part-0\.\w+ has a column 'day', and is in a directory day=\.\.\.: rename"
    ):
        prepare_tabular(format, tmp_path / "splits", tmp_path / "other", tmp_path / "raw.yaml")


def partitioned_dataset(path: Path) -> Path:
    ids = tuple(Feature(name=name, kind="categorical") for name in ("item", "place", "code"))
    schema = Schema(
        label="y",
        group="hour",
        weight="w",
        tables={"item": 50, "place": 50, "code": 9},
        hashed=("item", "place"),
        features=(*ids, Feature(name="d", kind="dense")),
    )
    save_yaml(path / "schema.yaml", schema)
    for hour, place in (("7", "a%2Fb"), ("08", NO_VALUE)):
        put(path / f"train/hour={hour}/place={place}/w=0.5/d={hour}.25/code={hour}/0.parquet")
    return path


def test_keys_are_columns_of_a_dataset(tmp_path: Path) -> None:
    dataset = Dataset(partitioned_dataset(tmp_path), "train")
    rows = dataset.read([Piece(group, 0, group.num_rows) for group in dataset.row_groups])
    items = [1 + loop_hash(item) % 49 for item in ("a", "b", "a")]
    place = 1 + loop_hash("a/b") % 49
    assert rows.ids.tolist() == [items * 2, [0] * 3 + [place] * 3, [8] * 3 + [7] * 3]
    assert rows.numbers.tolist() == [[0, 1, 1] * 2, [0.5] * 6, [8.25] * 3 + [7.25] * 3]
    assert dataset.column("hour").to_pylist() == [8] * 3 + [7] * 3
    assert dataset.column("w").to_pylist() == [0.5] * 6


@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        (
            "hour=noon/place=a/w=1/d=1/code=1",
            "directory hour=noon should name an integer, as schema.yaml wants: rename",
        ),
        ("hour=1/place=a/w=much/d=1/code=1", "its directory w=much should name a number"),
        (
            "hour=1/place=a/w=1/d=1/code=1/e=3",
            "keys code, d, e, hour, place, w, but .* with code, d, hour, place, w",
        ),
    ],
)
def test_keys_that_a_dataset_can_not_have(tmp_path: Path, folder: str, problem: str) -> None:
    put(partitioned_dataset(tmp_path) / "train" / folder / "0.parquet")
    with pytest.raises(UserError, match=problem):
        Dataset(tmp_path, "train")


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    partitioned_dataset(tmp_path)
    with pytest.raises(UserError, match=r"test: no Parquet files; splits here: train$"):
        Dataset(tmp_path, "test")


def test_splits_whose_names_are_in_capitals(tmp_path: Path) -> None:
    of("train.CSV", "Validation.csv", "TEST.csv")(tmp_path)
    found = input_files(tmp_path, "csv")
    assert [names(list(found[split]), tmp_path) for split in ("train", "validation", "test")] == [
        ["train.CSV"],
        ["Validation.csv"],
        ["TEST.csv"],
    ]


def test_a_place_among_the_rows_of_a_dataset(tmp_path: Path) -> None:
    of("schema.yaml")(tmp_path)
    of("train/day=1/0.parquet", "runs/smoke/data/train/0.parquet", "run/predictions/test.parquet")(tmp_path)
    for place in ("train/x.parquet", "train/day=1/x.parquet", "train/day=2/a/x.parquet"):
        assert split_around(tmp_path / place) is not None, place
    for place in (
        "x.parquet",
        "runs/x.parquet",
        "runs/a/x.parquet",
        "run/predictions/x.parquet",
        "new/x.parquet",
    ):
        assert split_around(tmp_path / place) is None, place
