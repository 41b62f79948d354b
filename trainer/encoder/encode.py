"""Rows of raw columns -> what an exported model reads: the ids and numbers that `cetnet prepare` makes of them."""

import json
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .arrow_values import Use, is_accepted, plain, remedy, words
from .hashing import hash_text
from .patterns import FORMS, LOSSY_FLOAT, WHOLE_FLOAT, other_form, written_list
from .vocabulary import Vocabulary

FORMAT = 1
"""Of `request.json`: readers of another one would take it for something else."""

_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_NO_VALUE = -1
"""Fills lists of ids behind their end."""


class WrongValue(ValueError):
    """A value that is not what its column holds.

    Attributes:
        column: its name in the raw rows.
        row: its number; that of the first row is 0, unless `encode` was told another.
    """

    def __init__(self, column: str, row: int, expected: str, value: object) -> None:
        super().__init__(column, row, expected, value)
        self.column, self.row = column, row
        self._what = f"expected {expected}, found {reprlib.repr(value)}"

    def __str__(self) -> str:
        return f"column {self.column!r}, row {self.row} (from 0): {self._what}"


@dataclass(frozen=True)
class _Column:
    """An entry of `columns` in request.json, whose keys it explains."""

    column: str
    feature: str
    kind: str
    takes: str
    missing: float
    table: str = ""
    rows: int = 0
    ids: str = ""
    forms: Sequence[str] = ()
    max_length: int | None = None
    keep: str = "recent"
    transform: str = "none"
    mean: float = 0.0
    deviation: float = 1.0
    lowest: float = 0.0

    @property
    def use(self) -> Use:
        role = {"number": "number", "integer": "id", "text": "value"}[self.takes]
        return Use(role, self.kind in ("multi_valued", "sequence"), text=True)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Values:
    """Values of a column, one after the other, and how many of them each row has."""

    column: _Column
    flat: pa.Array
    lengths: NDArray[np.int64] | None

    def wrong(self, at: int, expected: str) -> WrongValue:
        """The error for the value at a place in `flat`."""
        row = at if self.lengths is None else int(np.searchsorted(self.lengths.cumsum(), at, side="right"))
        return WrongValue(self.column.column, row, expected, self.flat[at].as_py())


class Encoder:
    """Makes the inputs of an exported model of raw rows, as the `request.json` of its folder says.

    Made once; `encode` changes nothing in it, so that threads may share one. Memory: the vocabularies.

    Raises:
        ValueError: the folder's request.json or vocabularies are not what they should be.
        OSError: they can't be read.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder, "request.json")
        try:
            self.request: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if self.request["format"] != FORMAT:
                raise ValueError(
                    f"format {self.request['format']!r} is not {FORMAT}, which this program reads"
                )
            self._columns = [_Column(**_read_keys(entry)) for entry in self.request["columns"]]
            self._inputs = {each["name"]: each for each in self.request["inputs"]}
            self.outputs: list[str] = list(self.request["outputs"])
            self._null_values = tuple(self.request["null_values"])
            self._separator: str = self.request["separator"]
            self._whole_floats: str = self.request["whole_floats"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not the request.json of an exported model ({error!r})") from error
        self._dense = [column for column in self._columns if column.kind == "dense"]
        # those of a table beside each other: they are looked up together; hashes of a table may be of two kinds
        self._of_table: dict[tuple[str, str], list[_Column]] = {}
        for column in self._columns:
            if column.takes == "text":
                self._of_table.setdefault((column.table, column.ids), []).append(column)
        self._vocabularies = {
            table: _vocabulary(path.parent, table, columns[0].rows)
            for (table, ids), columns in self._of_table.items()
            if ids == "vocabulary"
        }
        self._other_forms = {
            table: other_form(_forms(columns[0], self._vocabularies.get(table)))
            for (table, ids), columns in self._of_table.items()
            if ids != "hash_hex" and self._whole_floats == "refuse"
        }
        self._missing = pa.array([None, "", *self._null_values], pa.large_string())
        self._given_missing = np.array([int(v) for v in self._null_values if v == _decimal(v)], np.int64)
        self._written_list = written_list(self._separator)

    def encode(self, table: pa.Table, first_row: int = 0) -> dict[str, NDArray]:
        """The inputs of the model: those of `inputs` in request.json, in their order.

        Columns may be of any type that `cetnet prepare` reads, or text that holds what a cell of a CSV file would;
        null and the empty text are missing. Columns that the model doesn't read are ignored.

        Args:
            table: the rows.
            first_row: number of the first one, in a message.

        Raises:
            ValueError: a column is missing or there twice, or has a type that can't hold its values.
            WrongValue: a value is not what its column holds.
        """
        self._check(table)
        try:
            return self._encode(table)
        except WrongValue as wrong:
            wrong.row += first_row
            raise

    def _encode(self, table: pa.Table) -> dict[str, NDArray]:
        ids = {c.feature: of for c, of in self._encode_ids(table)}
        found: dict[str, NDArray] = {}
        for name, described in self._inputs.items():
            features = described["features"]
            if name == "dense":
                found[name] = self._encode_dense(table)
            elif name == "categorical":
                found[name] = np.stack([ids[feature][0] for feature in features], axis=1)
            else:
                found[name] = _padded([ids[feature] for feature in features], table.num_rows)
        return found

    def _check(self, table: pa.Table) -> None:
        names = table.schema.names
        for column in self._columns:
            if (count := names.count(column.column)) != 1:
                raise ValueError(
                    f"{'no column' if not count else f'{count} columns'} {column.column!r}, which the model reads; "
                    f"there are {', '.join(map(repr, names))}"
                )
            kind = table.schema.field(column.column).type
            if not is_accepted(kind, column.use):
                raise ValueError(
                    f"column {column.column!r} is {kind}, but the model wants {words(column.use)}: "
                    f"{remedy(kind, column.use)}"
                )

    def _encode_dense(self, table: pa.Table) -> NDArray[np.float32]:
        """`[rows, features]`: transformed."""
        numbers = np.empty((table.num_rows, len(self._dense)))
        for place, column in enumerate(self._dense):
            numbers[:, place] = self._numbers(table, column)
        for place, column in enumerate(self._dense):
            of, missing = numbers[:, place], np.isnan(numbers[:, place])
            if column.transform == "log1p":
                of = np.sign(of) * np.log1p(np.abs(of))
            elif column.transform == "standardize":
                of = (of - column.mean) / column.deviation
            elif column.transform == "log_from_lowest":
                of = np.log(np.maximum(of, column.lowest) - column.lowest + 2)
            numbers[:, place] = np.where(missing, column.missing, of)
            if len(bad := np.flatnonzero(~(np.abs(numbers[:, place]) <= _MAX_FLOAT32))):  # NaN is none
                value = table[column.column][int(bad[0])].as_py()
                raise WrongValue(
                    column.column, int(bad[0]), f"a number that {column.transform} can take", value
                )
        return numbers.astype(np.float32)

    def _numbers(self, table: pa.Table, column: _Column) -> NDArray[np.float64]:
        """The values of a dense column, NaN where missing."""
        array = _one_array(plain(table[column.column], column.use))
        texts = array if _is_text(array) else None
        if texts is not None:
            missing = pc.is_in(texts.cast(pa.large_string()), value_set=self._missing)
            array = pc.if_else(missing, None, texts)
        elif pa.types.is_boolean(array.type):
            array = array.cast(pa.uint8())
        try:
            numbers = array.cast(pa.float64(), safe=False).fill_null(np.nan)
        except pa.ArrowInvalid:
            numbers = pa.array([_number(text) for text in array.to_pylist()], pa.float64())
        found = numbers.to_numpy()
        bad = np.abs(found) > _MAX_FLOAT32
        if texts is not None and (nan := np.isnan(found)).any():
            bad |= nan & ~pc.match_substring_regex(array, r"(?i)^[+-]?nan$").fill_null(True).to_numpy(False)
        if bad.any():
            at = int(bad.argmax())
            expected = "a finite number or nothing"
            raise WrongValue(column.column, at, expected, table[column.column][at].as_py())
        return found

    def _encode_ids(self, rows: pa.Table) -> Iterator[tuple[_Column, tuple[NDArray[np.int64], Any]]]:
        """Of each column that holds values or ids, these ids and their number in each row (None: one)."""
        for column in self._columns:
            if column.takes == "integer":
                values = self._values(rows, column)
                yield column, (self._given_ids(values), values.lengths)
        values_of = [[self._values(rows, c) for c in columns] for columns in self._of_table.values()]
        if not values_of:
            return
        flats = [values.flat.cast(pa.large_string()) for of_table in values_of for values in of_table]
        # Rows of a request have much in common: what is done with the text itself is done once a value.
        encoded = pa.concat_arrays(flats).dictionary_encode(null_encoding="encode")
        codes, texts = encoded.indices.to_numpy(), encoded.dictionary
        missing = pc.is_in(texts, value_set=self._missing).to_numpy(False)
        if self._whole_floats == "integer":
            texts = pc.replace_substring_regex(texts, WHOLE_FLOAT, r"\1")
        if self._whole_floats != "text":
            lossy = pc.match_substring_regex(texts, LOSSY_FLOAT).fill_null(False).to_numpy(False) & ~missing
            if lossy.any():
                values, at = _place(values_of, int(lossy[codes].argmax()))
                raise values.wrong(at, "an integer with all of its digits, or text")
        hashes, missing, texts = hash_text(texts)[codes], missing[codes], texts.take(encoded.indices)
        start = 0
        for of_table in values_of:
            sizes = [len(values.flat) for values in of_table]
            here = slice(start, start := start + sum(sizes))
            ids = self._ids(of_table, texts[here], hashes[here], missing[here])
            for values, of_column in zip(of_table, np.split(ids, np.cumsum(sizes)[:-1]), strict=True):
                yield values.column, (of_column, values.lengths)

    def _ids(
        self, values: list[_Values], texts: pa.Array, hashes: NDArray[np.uint64], missing: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """The ids of the values of a table's columns, whose texts are one after the other."""
        column = values[0].column
        if column.ids == "hash_hex":
            ids, wrong = _hex_ids(texts, column.rows), "a hexadecimal number of 32 bits"
            bad = (ids < 0) & ~missing
        else:
            if column.ids == "hash_text":
                ids = 1 + (hashes % np.uint64(column.rows - 1)).astype(np.int64)
                asked = np.flatnonzero(~missing)
            else:
                ids = self._vocabularies[column.table].ids(texts, hashes)
                asked = np.flatnonzero((ids == 0) & ~missing)
            bad = np.zeros(len(ids), np.bool_)
            pattern, wrong = self._other_forms.get(column.table) or (None, "")
            if pattern and len(asked):
                found = pc.match_substring_regex(texts.take(pa.array(asked)), pattern)
                bad[asked[found.to_numpy(False)]] = True
        if bad.any():
            of_column, at = _place([values], int(bad.argmax()))
            raise of_column.wrong(at, wrong)
        return np.where(missing, 0, ids)

    def _given_ids(self, values: _Values) -> NDArray[np.int64]:
        """Ids that are in the column already; 0 for missing ones and those that the table has no row for."""
        array = values.flat
        if _is_text(array):
            ids = self._read_ids(values)
        else:
            if pa.types.is_uint64(array.type):
                array = pc.min_element_wise(array, pa.scalar(2**62, pa.uint64()))
            ids = array.cast(pa.int64()).fill_null(0).to_numpy()
            ids = np.where(np.isin(ids, self._given_missing), 0, ids)
        return np.where((ids >= 0) & (ids < values.column.rows), ids, 0)

    def _read_ids(self, values: _Values) -> NDArray[np.int64]:
        texts = values.flat.cast(pa.large_string())
        texts = pc.if_else(pc.is_in(texts, value_set=self._missing), None, texts)
        if self._whole_floats == "integer":
            texts = pc.replace_substring_regex(texts, WHOLE_FLOAT, r"\1")
        written = pc.match_substring_regex(texts, r"^[+-]?[0-9]+$").fill_null(True).to_numpy(False)
        if not written.all():
            raise values.wrong(int(written.argmin()), f"an id from 0 to {values.column.rows - 1}")
        digits = pc.replace_substring_regex(texts, r"^\+?0*([0-9]{1,18})$", r"\1")
        small = pc.match_substring_regex(digits, r"^[0-9]{1,18}$")
        return pc.if_else(small, digits, "-1").cast(pa.int64()).fill_null(0).to_numpy()

    def _values(self, table: pa.Table, column: _Column) -> _Values:
        array = _one_array(plain(table[column.column], column.use))
        if column.kind == "categorical":
            return _Values(column, array, None)
        if _is_text(array):
            if self._null_values:
                array = pc.if_else(
                    pc.is_in(array.cast(pa.large_string()), value_set=self._missing), None, array
                )
            lists = pc.match_substring_regex(array, self._written_list).fill_null(False).to_numpy(False)
            if lists.any():
                at, between = int(lists.argmax()), f"values with {self._separator!r} between them"
                expected = f"{between}, not a list as Python writes it"
                raise WrongValue(column.column, at, expected, array[at].as_py())
            array = pc.split_pattern(array, self._separator)
        lengths = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64)
        flat = array.flatten()
        if column.max_length is not None and len(lengths) and lengths.max() > column.max_length:
            kept = np.minimum(lengths, column.max_length)
            ends = lengths.cumsum()
            starts = ends - kept if column.keep == "recent" else ends - lengths
            flat = flat.take(pa.array(np.repeat(starts - kept.cumsum() + kept, kept) + np.arange(kept.sum())))
            lengths = kept
        return _Values(column, flat, lengths)


def _read_keys(entry: dict[str, Any]) -> dict[str, Any]:
    """What the encoder reads of an entry; others are for people."""
    return {key: value for key, value in entry.items() if key in _Column.__dataclass_fields__}


def _vocabulary(folder: Path, table: str, rows: int) -> Vocabulary:
    path = folder / "vocabularies" / f"{table}.parquet"
    if path.parent != folder / "vocabularies":
        raise ValueError(f"{folder}: table {table!r} can't be a file's name")
    try:
        vocabulary = Vocabulary.load(path)
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"{path}: not a vocabulary ({error})") from error
    if len(vocabulary) >= rows:
        raise ValueError(f"{path}: {len(vocabulary)} values, but the model's table has {rows} rows")
    return vocabulary


def _forms(column: _Column, vocabulary: Vocabulary | None) -> Sequence[str]:
    """How a table's ids are written that are numbers, as `other_form` takes it."""
    if vocabulary is None:
        return column.forms
    return [form for form, pattern in FORMS.items() if vocabulary.has(pattern)]


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def _place(values_of: list[list[_Values]], at: int) -> tuple[_Values, int]:
    """The column in which the value at a place of all of them is, and where there."""
    for values in (v for of_table in values_of for v in of_table):
        if at < len(values.flat):
            return values, at
        at -= len(values.flat)
    raise AssertionError


def _padded(lists: list[tuple[NDArray[np.int64], NDArray[np.int64]]], rows: int) -> NDArray[np.int64]:
    """`[rows, lists, longest]`: ids and -1 behind them."""
    size = max(1, *(int(lengths.max(initial=0)) for _, lengths in lists))
    padded = np.full((rows, len(lists), size), _NO_VALUE, np.int64)
    places = np.arange(size)
    for at, (ids, lengths) in enumerate(lists):
        padded[:, at][places < lengths[:, None]] = ids
    return padded


def _hex_ids(texts: pa.Array, rows: int) -> NDArray[np.int64]:
    """Hexadecimal numbers of 32 bits, as int32, modulo `rows`; -1 for what is none."""
    plain_texts = texts.fill_null("").cast(pa.string())
    readable = pc.match_substring_regex(plain_texts, r"^(\+?0*[0-9a-fA-F]{1,8}|-0+)$").to_numpy(False)
    eight = pc.utf8_slice_codeunits(pc.utf8_lpad(pc.utf8_ltrim(plain_texts, "+-"), 8, "0"), -8)
    eight = pc.if_else(pa.array(readable), eight, "00000000")
    digits = pc.binary_join_element_wise("0x", eight, "").cast(pa.uint32()).to_numpy()
    return np.where(readable, digits.view(np.int32).astype(np.int64) % rows, -1)


def _decimal(text: str) -> str | None:
    """The text as an integer of 64 bits is written; None for others."""
    try:
        number = int(text)
    except ValueError:
        return None
    return str(number) if -(2**63) <= number < 2**63 else None


def _number(text: str | None) -> float:
    """A text as Arrow reads it; infinity, which no column holds, for what it can't."""
    try:
        return np.nan if text is None else pa.scalar(text).cast(pa.float64()).as_py()
    except pa.ArrowInvalid:
        return np.inf
