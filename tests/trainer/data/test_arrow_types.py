"""Every Arrow type, for every use of a column: accepted, and the values right, or refused by file, column, type."""

import itertools
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cetnet.models.schema import Feature, FeatureKind, Schema
from cetnet.trainer.data.arrow_types import check_columns, prepared_uses
from cetnet.trainer.data.dataset import Dataset, Piece
from cetnet.trainer.encoder.arrow_values import ACCEPTED, Use, plain
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.parquet_frames import parquet_units, raw_uses
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.tabular import prepare_table
from cetnet.trainer.yaml_files import save_yaml
from tests.paths import ROOT
from tests.trainer.data.arrow_columns import (
    BITS,
    LEAVES,
    UNITS,
    Column,
    Leaf,
    array_of,
    columns,
    parquet_can_hold,
)
from tests.trainer.prepare.slow import loop_hash

GOOD, WILD = list(columns(wild=False)), list(columns(wild=True))
HELD = {id(column) for column in (*GOOD, *WILD) if parquet_can_hold(column.array)}
USES = [Use(role, many, text) for role in ACCEPTED for many in (False, True) for text in (False, True)]
HERE = Path("somewhere/part-0.parquet")


def is_right(column: Column, use: Use) -> bool:
    """Whether a column may have the use."""
    roles = column.leaf.roles.split()
    if use.many and not column.many:
        return column.leaf.type == pa.null() or (use.text and "text" in roles)
    return use.many == column.many and (use.role in roles or (use.text and "text" in roles))


def expected(column: Column, use: Use) -> list[Any]:
    """Its values in plain form."""
    if use.many and not column.many:  # a text is a list, of nothing if it is empty
        return [value or None for value in column.values]
    return [
        [one(each, column.leaf, use) for each in value]
        if isinstance(value, list)
        else one(value, column.leaf, use)
        for value in column.values
    ]


def one(value: Any, leaf: Leaf, use: Use) -> Any:
    kind = leaf.type
    if value is None or isinstance(value, str):
        return value
    if use.role == "time":
        if pa.types.is_date(kind):
            return value * 86_400
        return value // UNITS[kind.unit] if pa.types.is_timestamp(kind) else math.floor(value)
    return float(value) if isinstance(value, Decimal) else value


def refusal(column: Column, use: Use) -> str | None:
    try:
        check_columns(HERE, pa.schema([pa.field("x", column.array.type)]), [("x", use)], "schema.yaml")
    except UserError as error:
        return str(error)
    return None


def test_every_type_is_here() -> None:
    ids = {getattr(pa.lib, name) for name in dir(pa.lib) if name.startswith("Type_")}
    ids -= {pa.lib.Type_INTERVAL_MONTHS, pa.lib.Type_INTERVAL_DAY_TIME}  # pyarrow makes no arrays of these
    made: set[int] = set()
    extensions: set[type] = set()
    for column in WILD:
        kind = column.array.type
        while kind is not None:
            made.add(kind.id)
            extensions.add(type(kind))
            kind = getattr(kind, "storage_type", getattr(kind, "value_type", None))
    assert ids - made == {pa.lib.Type_LARGE_LIST} - made
    assert (
        set(pa.BaseExtensionType.__subclasses__()) - {pa.ExtensionType, pa.UnknownExtensionType} <= extensions
    )
    assert len(WILD) > 1000


@pytest.mark.parametrize("use", USES, ids=str)
def test_accepted_with_the_right_values_or_refused_by_name(use: Use) -> None:
    found = set()
    for column in WILD:
        told = refusal(column, use)
        found.add(told is None)
        if is_right(column, use):
            assert told is None, told
            chunks = [column.array, column.array.slice(2), column.array.slice(0, 0)]
            got, values = plain(pa.chunked_array(chunks), use), expected(column, use)
            assert got.to_pylist() == values + values[2:], column.name
            empty = plain(pa.chunked_array([], column.array.type), use)
            assert (len(empty), empty.type) == (0, got.type), column.name
            assert str(got.type) in PLAIN or (use.role == "value" and "dictionary<" in str(got.type))
        else:
            assert told is not None, (column.name, str(column.array.type))
            assert told.startswith(f"{HERE}: column 'x' is {column.array.type}, but schema.yaml wants ")
            assert re.search(": (cast it|write )", told)
    assert found == {True, False}


NUMBERS = [*(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)), "bool", "float", "double"]
PLAIN = {*NUMBERS, "string", "large_string"}
PLAIN |= {
    f"{kind}<{name}: {value}>"
    for kind in ("list", "large_list")
    for name in ("item", "element")
    for value in PLAIN
}


def test_the_documented_table_is_the_list() -> None:
    text = (ROOT / "docs/preparing.md").read_text(encoding="utf-8")
    text = text.partition("| a column's use |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (\w+): [^|]* \| ([^|]*) \|$", text, re.MULTILINE)
    documented = {role: tuple(kinds.split(", ")) for role, kinds in rows}
    assert documented == {role: tuple(k for k in kinds if k != "null") for role, kinds in ACCEPTED.items()}


def write(file: Path, of: Iterable[Column]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {column.name: column.array for column in of}
    pq.write_table(pa.table({"y": BITS} | columns), file)
    return file


def usable(of: Iterable[Column], use: Use) -> list[Column]:
    return [column for column in of if is_right(column, use) and id(column) in HELD]


def renamed(prefix: str, of: Iterable[Column]) -> list[Column]:
    return [column._replace(name=f"{prefix}_{column.name}") for column in of]


def test_a_dataset_of_all_types_is_read_as_it_is(tmp_path: Path) -> None:
    without_null = [c for c in GOOD if not c.many and None not in c.values]
    dense = renamed("dense", usable(without_null, Use("number")))
    ids = renamed("id", usable(without_null, Use("id")))
    values = renamed("value", usable(WILD, Use("value")))
    lists = renamed("values", usable(WILD, Use("value", many=True)))
    assert min(len(dense), len(ids)) > 40
    assert min(len(values), len(lists)) > 60
    kinds: dict[FeatureKind, list[Column]] = {
        "dense": dense, "categorical": [*ids, *values], "multi_valued": lists
    }  # fmt: skip
    hashed = [column.name for column in (*values, *lists)]
    schema = Schema(
        label="y",
        tables={c.name: 2 for c in ids} | dict.fromkeys(hashed, 50),
        hashed=tuple(hashed),
        features=tuple(Feature(name=c.name, kind=kind) for kind, of in kinds.items() for c in of),
    )
    save_yaml(tmp_path / "schema.yaml", schema)
    write(tmp_path / "train/0.parquet", [*dense, *ids, *values, *lists])
    rows = read(Dataset(tmp_path, "train"))
    for name, got in zip([c.name for c in dense], rows.numbers[2:], strict=True):
        assert got.tolist() == BITS, name
    for column, got in zip([*ids, *values], rows.ids, strict=True):
        assert got.tolist() == (BITS if column in ids else hashes(column.values)), column.name
    for column, of_lists in zip(lists, rows.lists, strict=True):
        assert lists_of(of_lists) == [hashes(value or []) for value in column.values], column.name


def hashes(values: list[Any]) -> list[int]:
    texts = [str(value).lower() if isinstance(value, bool) else value for value in values]
    return [0 if value in (None, "") else 1 + loop_hash(str(value)) % 49 for value in texts]


def read(dataset: Dataset) -> Any:
    return dataset.read([Piece(group, 0, group.num_rows) for group in dataset.row_groups])


def without_nulls(of: Iterable[Column]) -> list[Column]:
    """Lists of three rows, none of them null or with a null: of ids that are not hashed, other rows are bad."""
    kept = [0, 2, 3]
    rows = [c._replace(array=c.array.take(pa.array(kept)), values=[c.values[i] for i in kept]) for c in of]
    return [c for c in rows if all(value is not None and None not in value for value in c.values)]


def lists_of(lists: Any) -> list[list[int]]:
    return [lists.ids[a:b].tolist() for a, b in itertools.pairwise(lists.offsets)]


@pytest.mark.parametrize("alike", [True, False])
def test_lists_of_ids_of_all_types(tmp_path: Path, alike: bool) -> None:
    """In one file, and in two of different types."""
    found = without_nulls(usable([c for c in GOOD if c.many], Use("id", many=True)))
    assert len(found) > 30
    schema = Schema(
        label="y", tables={c.name: 2 for c in found},
        features=tuple(Feature(name=c.name, kind="multi_valued") for c in found),
    )  # fmt: skip
    save_yaml(tmp_path / "schema.yaml", schema)
    (tmp_path / "train").mkdir()
    other = found if alike else [*found[7:], *found[:7]]
    for number, of_file in enumerate((found, other)):
        arrays = {c.name: one.array for c, one in zip(found, of_file, strict=True)}
        pq.write_table(pa.table({"y": BITS[:3], **arrays}), tmp_path / f"train/{number}.parquet")
    for column, second, lists in zip(found, other, read(Dataset(tmp_path, "train")).lists, strict=True):
        assert lists_of(lists) == column.values + second.values, (column.name, second.name)


def test_label_weight_and_group_of_all_types(tmp_path: Path) -> None:
    for column in usable(
        [c for c in GOOD if None not in c.values and not c.name.endswith(("int64", "uint32"))], Use("number")
    ):
        has_group = is_right(column, Use("id"))
        names = {"label": "y", "weight": "w", "group": "g" if has_group else None}
        schema = Schema(**names, tables={"x": 2}, features=(Feature(name="x", kind="categorical"),))
        save_yaml(tmp_path / "schema.yaml", schema)
        (tmp_path / "train").mkdir(exist_ok=True)
        table = pa.table({"x": BITS, "y": column.array, "w": column.array, "g": column.array})
        pq.write_table(table, tmp_path / "train/0.parquet")
        dataset = Dataset(tmp_path, "train")
        assert read(dataset).numbers[:2].tolist() == [BITS, BITS], column.name
        for name in filter(None, names.values()):
            assert [float(value) for value in dataset.column(name).to_pylist()] == BITS, column.name


def prepare(spec: RawSchema, file: Path, out: Path) -> pl.DataFrame:
    """The rows of train, which are all of the file, as those of the other splits."""
    splits = {name: [file] for name in ("train", "validation", "test")}
    prepare_table(spec, splits, "parquet", out, Card("t", "s", "c"), workers=1)
    return pl.read_parquet(out / "train/*.parquet")


def cells(column: Column) -> list[list[Any]]:
    """What is in each row, one value or several."""
    return [value or [] if column.many else [value] for value in column.values]


def text_of(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_raw_files_of_all_types_are_prepared_as_they_are(tmp_path: Path) -> None:
    # There are many, and others like them.
    skipped = ("dictionary_int64", "dictionary_uint32", "large_list_view")
    wild, good = ([c for c in of_all if not c.name.endswith(skipped)] for of_all in (WILD, GOOD))
    numbers = [c for c in wild if "text" not in c.leaf.roles]
    of = {
        ("dense", "number"): renamed("dense", usable(numbers, Use("number"))),
        ("categorical", "id"): renamed("id", usable(good, Use("id", text=True))),
        ("categorical", "value"): renamed("value", usable(wild, Use("value", text=True))),
        ("multi_valued", "id"): renamed("ids", usable(good, Use("id", many=True, text=True))),
        ("multi_valued", "value"): renamed("values", usable(wild, Use("value", many=True, text=True))),
    }
    features = [
        {"name": column.name, "kind": kind} | ({} if role == "number" else {"table": role})
        for (kind, role), found in of.items()
        for column in found
    ]
    spec = RawSchema.model_validate({"label": "y", "tables": {"id": 2}, "features": features})
    file = write(tmp_path / "0.parquet", [column for found in of.values() for column in found])
    got = prepare(spec, file, tmp_path / "out")
    of_values = [column for (_, role), found in of.items() if role == "value" for column in found]
    texts = {text_of(v) for column in of_values for cell in cells(column) for v in cell} - {""}
    ids = {text: number for number, text in enumerate(sorted(texts), 1)}
    for (kind, role), found in of.items():
        assert len(found) > 20
        for column in found:
            rows = got[column.name].to_list()
            if role == "number":
                assert rows == [float(np.float32(value or 0)) for value in column.values], column.name
                continue
            wanted = [
                [ids.get(text_of(v), 0) if role == "value" else int(v or 0) for v in cell]
                for cell in cells(column)
            ]
            if kind == "multi_valued" and not column.many:  # a text is a list, of nothing if it is empty
                wanted = [row if value else [] for row, value in zip(wanted, column.values, strict=True)]
            assert rows == (wanted if kind == "multi_valued" else [row[0] for row in wanted]), column.name


TIMES = [leaf for leaf in LEAVES if "time" in leaf.roles and not pa.types.is_integer(leaf.type)]


@pytest.mark.parametrize("leaf", [TIMES[0], *TIMES[3:4], *TIMES[-10:]], ids=lambda leaf: str(leaf.type))
def test_raw_times_are_seconds(tmp_path: Path, leaf: Leaf) -> None:
    column = Column("t", array_of(leaf.type, leaf.good), leaf.good, leaf, False)
    spec = RawSchema(label="y", timestamp="t", features=(RawFeature(name="x", kind="categorical"),))
    file = write(tmp_path / "0.parquet", [column, column._replace(name="x", array=pa.array(BITS))])
    assert prepare(spec, file, tmp_path / "out")["t"].to_list() == expected(column, Use("time"))


FEATURES: list[tuple[FeatureKind, bool]] = [
    ("dense", False), ("categorical", False), ("categorical", True), ("multi_valued", False), ("multi_valued", True)
]  # fmt: skip


@pytest.mark.parametrize(("kind", "hashed"), FEATURES)
def test_other_types_are_refused_before_anything_starts(
    tmp_path: Path, kind: FeatureKind, hashed: bool
) -> None:
    names = {"x": kind, "z": "categorical"}
    tables = {name: 50 for name, of in names.items() if of != "dense"}
    features = [{"name": name, "kind": of} for name, of in names.items()]
    schema = Schema.model_validate(
        {"label": "y", "tables": tables, "features": features} | ({"hashed": list(tables)} if hashed else {})
    )
    spec = RawSchema.model_validate({"label": "y", "tables": {} if hashed else tables, "features": features})
    save_yaml(tmp_path / "schema.yaml", schema)
    file, use = tmp_path / "train/0.parquet", dict(prepared_uses(schema))["x"]
    refused = 0
    for column in WILD:
        nesting = column.name.split("_", 1)[1]
        if nesting not in ("plain", "list", "list_of_list") or id(column) not in HELD:
            continue
        write(file, [column._replace(name="x"), column._replace(name="z", array=pa.array(BITS))])
        told = rf"^{re.escape(f'{file}')}: column 'x' is {re.escape(str(pq.read_schema(file).field('x').type))}, but "
        if not is_right(column, use):
            with pytest.raises(UserError, match=rf"{told}schema.yaml wants .*: (cast|write) "):
                Dataset(tmp_path, "train")
        if not is_right(column, use._replace(text=True)):
            refused += 1
            with pytest.raises(UserError, match=rf"{told}the schema wants .*: (cast|write) "):
                parquet_units(file, 0, None, 1, raw_uses(spec), {})
    assert refused > 50
    with pytest.raises(UserError, match=rf"{told}the schema wants"):
        prepare(spec, file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
