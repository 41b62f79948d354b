"""New rows, read by the vocabularies and transforms of a dataset, or of a run that was trained on it (`--like`)."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cetnet.models.schema import Schema
from cetnet.trainer.data.data_files import Format, KeyValues
from cetnet.trainer.data.dataset import load_schema
from cetnet.trainer.encoder.vocabulary import COLUMNS
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import link_or_copy
from cetnet.trainer.prepare.engine.chunks import column_names
from cetnet.trainer.prepare.engine.drift import Training, training_of
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding
from cetnet.trainer.prepare.engine.tasks import read_facts
from cetnet.trainer.prepare.engine.vocabulary_files import digest_text, file_of

_EXAMPLES = {"integer": "17", "whole": "17.0", "lossy": "1.7e+18"}


@dataclass(frozen=True)
class Like:
    """What new rows are read by.

    Attributes:
        folder: of a dataset or a run.
        schema, encoding: its own.
        training: what is known of the rows that it was trained on, or nothing.
        grow: whether values that it doesn't know get ids behind those that it has.
    """

    folder: Path
    schema: Schema
    encoding: RawEncoding
    training: Training
    grow: bool

    @property
    def tables(self) -> list[str]:
        """Those with a vocabulary."""
        return self.encoding.raw.vocabulary_tables

    @property
    def growing(self) -> list[str]:
        """Tables whose vocabulary may grow: not those of given vectors."""
        return [table for table in self.tables if self.grow and table not in self.schema.pretrained]

    @property
    def digests(self) -> Mapping[str, str]:
        """Those of the vocabularies."""
        return self.schema.vocabularies or {}

    @property
    def identity(self) -> dict[str, Any]:
        """What a job knows it by."""
        return {
            "schema": self.schema.model_dump(mode="json"),
            "encoding": self.encoding.model_dump(mode="json"),
            "training": self.training,
            "grow": self.grow,
        }

    def take(self, folder: Path) -> None:
        """Link or copy vocabularies and vectors into a folder, where nothing replaces them while they are read."""
        for table in self.tables:
            link_or_copy(file_of(self.folder, table), file_of(folder, table))
        for table in self.schema.pretrained:
            if (source := vectors_of(self.folder, table)).exists():  # a run has none
                link_or_copy(source, vectors_of(folder, table))

    def check_digests(self, known: Mapping[str, Sequence[Path]]) -> None:
        """UserError if a vocabulary is not that of the schema, by the pieces that `sort_values` read."""
        for table, of_table in known.items():
            digest = digest_text(sum(read_facts(piece)["digest"] for piece in of_table))
            if self.digests.get(table) != digest:
                raise UserError(
                    f"{file_of(self.folder, table)} is not the vocabulary of the schema.yaml there: it was changed, "
                    "or replaced just now; restore it, or start again"
                )

    def forms(self, known: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, str]]:
        """How the ids of each table are written, by examples: `values.forms`."""
        found: dict[str, dict[str, str]] = {
            table: {form: _EXAMPLES[form] for form in of} for table, of in self.encoding.forms.items()
        }
        for table, of_table in known.items():
            for piece in of_table:
                found[table] = read_facts(piece)["forms"] | found.get(table, {})
        return found


def vectors_of(folder: Path, table: str) -> Path:
    """The given vectors of a table, in a dataset."""
    return folder / "pretrained" / f"{table}.npy"


def load_like(folder: Path, grow: bool) -> Like:
    """The dataset or run in a folder; UserError if new rows can't be read by it, and what to do instead."""
    if not folder.is_dir():
        raise UserError(f"--like {folder}: no such folder; name a prepared dataset, or a run trained on one")
    schema = load_schema(folder)
    encoding = RawEncoding.load(folder)
    if encoding is None:
        raise UserError(f"--like {folder}: it has no encoding.yaml, {_instead(schema)}")
    if encoding.transform is not None:
        raise UserError(
            f"--like {folder}: its raw rows were read by a public dataset's own reader ({encoding.transform}): "
            "prepare old and new rows together by it, or by `cetnet prepare csv` with a schema of your own"
        )
    _check_whole(folder, schema, encoding)
    if grow and (missing := [t for t in schema.pretrained if not vectors_of(folder, t).exists()]):
        raise UserError(
            f"--like {folder}: no pretrained/{missing[0]}.npy, which training needs; name the dataset, not the run"
        )
    return Like(folder, schema, encoding, _training(folder), grow)


def _instead(schema: Schema) -> str:
    if schema.id_ranges:
        return (
            "since its ids are hashed as they are read: no preparation is needed, put the new Parquet files into a "
            "directory beside a copy of its schema.yaml"
        )
    return (
        "as datasets have that `cetnet prepare csv` and `parquet` made: if an earlier version did, prepare it again; "
        "rows that were drawn, or read by a public dataset's own reader, are prepared all together"
    )


def _training(folder: Path) -> Training:
    file = folder / "card.json"
    try:
        return training_of(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read as a data card ({error}); restore it, or remove it"
        ) from error


def _check_whole(folder: Path, schema: Schema, encoding: RawEncoding) -> None:
    """Schema, encoding and vocabularies must be of one dataset."""
    raw = encoding.raw
    rows = {table: schema.tables.get(table, 1) for table in raw.vocabulary_tables}
    try:
        expected = raw.prepared(rows, schema.pretrained)
        columns = [
            [feature.model_dump(exclude={"mean_length"}) for feature in each.features]
            for each in (schema, expected)
        ]
        same = columns[0] == columns[1] and schema.tables == expected.tables
    except ValidationError:
        same = False
    if not same or schema.encoding != encoding.digest:
        raise UserError(
            f"{folder}: schema.yaml and encoding.yaml are not of one dataset; restore both, or prepare it again"
        )
    for table in raw.vocabulary_tables:
        file = file_of(folder, table)
        try:
            metadata = pq.read_metadata(file)
        except FileNotFoundError:
            raise UserError(f"{file}: no such file, the vocabulary of table {table!r}; restore it") from None
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read as a vocabulary: {str(error).splitlines()[0]}") from error
        if metadata.num_rows != rows[table] - 1 or metadata.schema.to_arrow_schema().names != COLUMNS.names:
            raise UserError(
                f"{file} is not the vocabulary of table {table!r} in schema.yaml, which has {rows[table] - 1:,} "
                "values; restore it"
            )


def present_roles(
    raw: RawSchema, files: Sequence[Path], format: Format, keys: Mapping[Path, KeyValues]
) -> tuple[RawSchema, list[str]]:
    """The raw schema without the roles that no file has a column for, and these (the label's stays).

    New rows to be scored have no label yet, nor need they have a weight, a group or a time. A column that only some
    files have is a UserError.
    """
    roles = {role: getattr(raw, role) for role in ("label", "group", "timestamp", "weight")}
    features = {feature.raw for feature in raw.features}
    absent: dict[str, Path] = {}
    present: dict[str, Path] = {}
    for file in files:
        found: Collection[str] = {*column_names(file, format, raw), *keys.get(file, {})}
        for role, column in roles.items():
            if column is not None and column not in features:
                (present if column in found else absent).setdefault(role, file)
    for role, file in absent.items():
        if role in present:
            raise UserError(
                f"{file} has no column {roles[role]!r} (the {role}), and {present[role]} has: give it in all files, "
                "or in none"
            )
    return raw.model_copy(update={role: None for role in absent if role != "label"}), list(absent)
