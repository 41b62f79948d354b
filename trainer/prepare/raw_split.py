"""Raw rows as a split that a run scores, encoded as they are read: with the checks of `cetnet prepare`."""

import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cetnet.models.schema import Schema
from cetnet.trainer.data.data_files import SUFFIXES, DataFile, Format, split_around
from cetnet.trainer.data.dataset import Dataset, RawColumns, Source
from cetnet.trainer.data.parquet_files import RowGroup
from cetnet.trainer.encoder.patterns import FORMS, LOSSY_FLOAT, other_form
from cetnet.trainer.encoder.vocabulary import Vocabulary
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.drift import Drift, Training, training_of, warning
from cetnet.trainer.prepare.engine.encoded import dense_values
from cetnet.trainer.prepare.engine.input_files import input_files
from cetnet.trainer.prepare.engine.parquet_frames import raw_uses
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema, columns, hash_ids
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding
from cetnet.trainer.prepare.engine.typed import checked_values, flatten, unflatten
from cetnet.trainer.prepare.engine.units import BadValue, Unit
from cetnet.trainer.prepare.engine.vocabulary_files import digest_text, file_of, values_digest
from cetnet.trainer.run_folder import load_run

ALL = "all rows"


@dataclass(frozen=True)
class RawRows:
    """Raw files that a run is to score.

    Attributes:
        path: what the user named.
        split: whose files these are, or ALL.
        origins: what they were made of, if they are text in Parquet that was CSV.
    """

    path: Path
    split: str
    format: Format
    files: Sequence[DataFile]
    origins: Mapping[Path, Path] = field(default_factory=dict)


def find_rows(raw: Path, split: str | None) -> RawRows:
    """The files of a path that is no prepared dataset: of the split `test`, or another, if it has splits.

    Raises UserError for what is no data, and for a split that isn't there.
    """
    if of_dataset := split_around(raw / "rows" if raw.is_dir() else raw):
        given = f"`{of_dataset.parent} --split {of_dataset.name}`"
        raise UserError(f"{raw}: these are prepared rows, a split of a dataset; score them as {given}")
    format = _format(raw)
    found = input_files(raw, format)
    if "all" in found:
        if split is not None:
            raise UserError(f"{raw} has no splits, all of its rows are scored: leave --split {split} out")
        return RawRows(raw, ALL, format, found["all"])
    split = split or "test"
    if split not in found:
        raise UserError(f"{raw} has no split {split!r}, but {', '.join(found)}")
    return RawRows(raw, split, format, found[split])


def _format(raw: Path) -> Format:
    """By the suffixes in a directory, or else by a file's first bytes; what can't be told is left to the readers."""
    file = raw
    if raw.is_dir():
        names = [Path(folder, name) for folder, _, names in os.walk(raw) for name in sorted(names)]
        endings = {
            format for name in names for format, of in SUFFIXES.items() if str(name).lower().endswith(of)
        }
        if endings:
            return "csv" if endings == {"csv"} else "parquet"
        file = next((name for name in names if name.name[0] not in "._" and name.is_file()), raw)
        if file is raw:
            return "parquet"
    if not file.exists():
        raise UserError(f"{raw}: no such file; name a prepared dataset, or raw Parquet or CSV files")
    if not file.is_file():
        return "csv"
    try:
        with file.open("rb") as opened:
            return "parquet" if opened.read(4) == b"PAR1" else "csv"
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); make it readable") from error


def raw_split(run: Path, rows: RawRows, *, labelled: bool) -> Dataset:
    """Rows of raw Parquet files as a run's model takes them; what isn't so is a UserError, here or when it is read.

    Only metrics need rows that are `labelled`.
    """
    _, schema = load_run(run, resolve=False)
    encoding = run_encoding(run, schema)
    encoder = RawEncoder(run, schema, encoding, labelled, rows.origins) if encoding else None
    source = Source(schema, rows.files, encoder.columns if encoder else None)
    return Dataset(rows.path, rows.split, labelled=labelled, source=source)


def run_encoding(run: Path, schema: Schema) -> RawEncoding | None:
    """What turns raw rows into those of a run; None if they are read as they are.

    Raises UserError if that isn't known, or was changed.
    """
    encoding = RawEncoding.load(run)
    if encoding is None and schema.vocabularies:
        raise UserError(
            f"{run}: no encoding.yaml here, which says what turns raw rows into ids: its data was read by a public "
            "dataset's own reader, or prepared by an earlier version; score prepared rows"
        )
    if encoding is not None and encoding.transform is not None:
        raise UserError(
            f"{run}: its raw rows were read by a public dataset's own reader ({encoding.transform}), which changes "
            "columns first; score prepared rows, or prepare by `cetnet prepare csv` with your own schema, and train"
        )
    if encoding is not None:
        check_encoding(run, encoding, schema)
    for table in schema.vocabularies or {}:
        if not file_of(run, table).exists():
            raise UserError(f"{file_of(run, table)}: not found; restore it from the run's dataset")
    return encoding


def check_encoding(run: Path, encoding: RawEncoding, schema: Schema) -> None:
    """Raise UserError if the encoding in a run folder isn't that of its schema."""
    if encoding.digest != schema.encoding:
        raise UserError(
            f"{run}: encoding.yaml and schema.yaml are not of one dataset; restore both from the run's"
        )


class RawEncoder:
    """Raw columns -> those of a run's schema. Vocabularies are loaded once, when they are first needed.

    Args:
        run: folder of the run.
        schema: its schema.
        encoding: its encoding.
        labelled: whether label and weight are read.
        origins: files to name in messages in place of others.
    """

    def __init__(
        self, run: Path, schema: Schema, encoding: RawEncoding, labelled: bool, origins: Mapping[Path, Path]
    ) -> None:
        self._run, self._schema, self._encoding, self._labelled = run, schema, encoding, labelled
        self._origins = origins
        unread = {"timestamp": None, "group": None} | ({} if labelled else {"weight": None})
        self._spec = encoding.raw.model_copy(update=unread)
        self._lock = Lock()
        self._vocabularies: dict[str, tuple[Vocabulary, list[str]]] = {}
        self._labels: set[float] = set()
        self._unknown: dict[str, tuple[int, int]] = {}
        self._training = _training(run / "card.json")

    @property
    def columns(self) -> RawColumns:
        """How a `Dataset` reads such rows."""
        raw = self._encoding.raw
        untimed = raw.model_copy(update={"timestamp": None})
        uses = raw_uses(untimed) if self._labelled else raw_uses(self._spec)[1:]  # without the label
        names = {
            self._schema.label: raw.label,
            self._schema.weight: raw.weight,
            self._schema.group: raw.group,
            self._schema.timestamp: raw.timestamp,
        }
        roles = {name: column for name, column in names.items() if name and column}
        return RawColumns(uses, self._encode, roles, self._role, self._known, self._unknown, self._drift)

    def _vocabulary(self, table: str) -> tuple[Vocabulary, list[str]]:
        """A table's, and in which of these forms it has ids that are numbers."""
        with self._lock:
            if table not in self._vocabularies:
                vocabulary = load_vocabulary(
                    file_of(self._run, table), (self._schema.vocabularies or {})[table]
                )
                forms = [form for form, pattern in FORMS.items() if vocabulary.has(pattern)]
                self._vocabularies[table] = vocabulary, forms
            return self._vocabularies[table]

    def _encode(self, table: pa.Table, group: RowGroup) -> pa.Table:
        spec, schema = self._spec, self._schema
        frame = pl.DataFrame(table)
        if not self._labelled:
            frame = frame.with_columns(pl.lit(0.0).alias(spec.label))
        unit = Unit(self._origins.get(group.file, group.file), 0, None, 0, 0, 1)
        values = checked_values(frame, unit, group.row_in_file, spec, trained=True)
        dense = [feature for feature in spec.features if feature.kind == "dense"]
        moments, lowest = self._encoding.moments, self._encoding.lowest or 0.0
        values = values.with_columns(
            pl.col(spec.label).clip(lower_bound=0),
            *(dense_values(feature, moments, lowest).cast(pl.Float32) for feature in dense),
            *(
                self._ids(values[feature.name], feature, unit, group.row_in_file)
                for feature in spec.features
                if feature.kind != "dense"
            ),
        )
        beside = [spec.label, spec.weight] if self._labelled else []
        return values.select(
            name for name in (*beside, *(f.name for f in schema.features)) if name
        ).to_arrow()

    def _ids(self, texts: pl.Series, feature: RawFeature, unit: Unit, row: int) -> pl.Series:
        """Ids of values, in lists or not; BadValue for the first that can't be one, `row` being the first one's."""
        flat, lengths = flatten(texts)
        table = feature.table or feature.name
        bad: dict[str, NDArray] = {}
        if feature.hash is not None:
            ids = np.where(flat.is_null(), 0, hash_ids(flat.fill_null("0"), feature))
            bad["hexadecimal numbers of 32 bits"] = np.flatnonzero(ids < 0)
            if feature.hash_function == "text":
                bad |= self._misread(flat, np.arange(len(flat)), self._encoding.forms.get(table, ()))
        elif table in (self._schema.vocabularies or {}):
            vocabulary, forms = self._vocabulary(table)
            ids = vocabulary.ids(flat.to_arrow())
            new = np.flatnonzero(ids == 0)
            bad = self._misread(flat, new, forms)
            with self._lock:
                values, unknown = self._unknown.get(feature.name, (0, 0))
                self._unknown[feature.name] = values + len(ids), unknown + len(new)
        else:
            ids = flat.to_numpy()
        for expected, places in bad.items():
            if len(places):
                at = int(places[0])
                row += at if lengths is None else int(np.searchsorted(lengths.cumsum(), at, side="right"))
                raise BadValue(unit, feature.raw, row + 1, f"{expected}, found {reprlib.repr(flat[at])}")
        return unflatten(texts.name, ids, lengths)

    def _drift(self, encoded: Sequence[Mapping[str, tuple[int, int]]]) -> str | None:
        """A line about columns with many more values that the model doesn't know than in training."""
        found = []
        for name, training in self._training.items():
            values, unknown = (sum(each.get(name, (0, 0))[i] for each in encoded) for i in range(2))
            if values and "unknown_ids" in training:
                then, now = training["unknown_ids"], unknown / values
                found.append(Drift(name, {"unknown": then}, {"unknown": now}, {"unknown": now - then}))
        return warning(sorted(found, key=lambda each: -each.largest))

    def _misread(self, texts: pl.Series, places: NDArray, forms: Sequence[str]) -> dict[str, NDArray]:
        """By what is expected instead, those places whose texts stand for ids that are written otherwise in train."""
        refused = {}
        if self._spec.whole_floats == "refuse":
            refused["an integer with all of its digits, or text"] = LOSSY_FLOAT
            if other := other_form(forms):
                refused[other[1]] = other[0]
        of_places = texts.gather(places)
        return {
            expected: places[of_places.str.contains(pattern).fill_null(False).to_numpy()]
            for expected, pattern in refused.items()
        }

    def _role(self, name: str, column: pa.ChunkedArray) -> pa.Array:
        """Label and weight (Float64), group (text) or timestamp (seconds, Int64) as prepare reads it, or null."""
        raw = self._encoding.raw
        frame = pl.DataFrame(pa.table({self.columns.roles[name]: column}))
        frame = _with_nulls(frame, raw)
        found = next(each for each in columns(Path(), frame.schema, raw) if each.name == name)
        values = frame.select(found.value.alias(name)).to_series()
        if name != self._schema.label:
            return values.to_arrow()
        self._labels |= {-1.0, 0.0} & set(values.unique())
        if self._labelled and len(self._labels) == 2:
            raise UserError(
                f"column {raw.label!r} has both -1 and 0: give 0 and 1, or -1 and 1, and leave out rows without "
                "a label"
            )
        return values.clip(lower_bound=0).to_arrow()

    def _known(self, name: str, column: pa.ChunkedArray) -> NDArray[np.bool_] | None:
        for feature in self._spec.features:
            table = feature.table or feature.name
            if (
                feature.raw == name
                and feature.kind == "categorical"
                and table in (self._schema.vocabularies or {})
            ):
                alone = self._spec.model_copy(update={"features": (feature,), "tables": {}})
                frame = pl.DataFrame(pa.table({name: column}))
                frame = _with_nulls(frame, alone)
                (of_feature,) = (
                    each for each in columns(Path(), frame.schema, alone) if each.name == feature.name
                )
                texts = frame.select(of_feature.value.alias(name)).to_series()
                return self._vocabulary(table)[0].ids(texts.to_arrow()) > 0
        return None


def load_vocabulary(file: Path, digest: str) -> Vocabulary:
    """The vocabulary in a file; raises UserError if it can't be read, or isn't that of the digest."""
    try:
        with file.open("rb") as opened:
            table = pq.read_table(opened, columns=["value", "id"])
        values, ids = pl.Series(table["value"]).to_arrow(), table["id"].to_numpy()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{file}: cannot be read ({str(error).splitlines()[0]}); restore it") from error
    if digest_text(values_digest(values, ids)) != digest:
        raise UserError(
            f"{file}: it isn't the vocabulary that the run's schema.yaml has the digest of; restore it from the "
            "run's dataset"
        )
    return Vocabulary(values, ids)


def _training(card: Path) -> Training:
    """What a run's data card says of its training rows; nothing if it has none."""
    try:
        return training_of(json.loads(card.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{card}: cannot be read ({error}); restore it from the run's dataset") from error


def _with_nulls(frame: pl.DataFrame, spec: RawSchema) -> pl.DataFrame:
    """With the columns that a schema has besides, so that one of them can be typed alone."""
    others = set(spec.raw_columns) - set(frame.columns)
    return frame.with_columns(pl.lit(None).alias(name) for name in others)
