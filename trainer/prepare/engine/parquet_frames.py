"""Raw Parquet files: row groups that one task reads, and their rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.trainer.data.arrow_types import Role, Use, check_columns, plain_table
from cetnet.trainer.data.data_files import KeyValues, check_keys
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.units import Unit

_TIMES = "us"  # of Spark's INT96; as nanoseconds, years after 2262 come out as others


def raw_uses(spec: RawSchema) -> list[tuple[str, Use]]:
    """What the raw columns are for, features last; a column may have several uses, and be text for any."""
    roles: list[tuple[str | None, Role]] = [
        (spec.label, "number"),
        (spec.weight, "number"),
        (spec.group, "value"),
        (spec.timestamp, "time"),
    ]
    uses = [(name, Use(role, text=True)) for name, role in roles if name is not None]
    for feature in spec.features:
        many = feature.kind in ("multi_valued", "sequence")
        given = feature.hash is None and spec.tables.get(feature.table or feature.name) is not None
        role: Role = "number" if feature.kind == "dense" else "id" if given else "value"
        uses.append((feature.raw, Use(role, many, text=True)))
    return uses


def parquet_units(
    path: Path,
    file: int,
    split: int | None,
    chunk_bytes: int,
    uses: Sequence[tuple[str, Use]],
    keys: KeyValues,
) -> list[Unit]:
    """The units of a file, in its order: row groups of about `chunk_bytes` together.

    Raises UserError for a column of `uses` that is missing or of a wrong type; `keys` are those of its directories.
    """
    with pq.ParquetFile(path, coerce_int96_timestamp_unit=_TIMES) as opened:
        metadata, columns = opened.metadata, opened.schema_arrow
    check_keys(path, columns.names, keys)
    check_columns(path, columns, uses, "the schema", keys)
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    groups: list[list[int]] = []
    for number, size in enumerate(sizes):
        if groups and sum(sizes[i] for i in groups[-1]) + size <= chunk_bytes:
            groups[-1].append(number)
        else:
            groups.append([number])
    # a file without rows is still a unit, whose columns are checked
    return [
        Unit(path, file, split, group[0], group[-1] + 1, sum(sizes[i] for i in group)) for group in groups
    ] or [Unit(path, file, split, 0, 0, 1)]


def parquet_frames(
    unit: Unit, chunk_bytes: int, uses: Sequence[tuple[str, Use]] | None
) -> Iterator[pl.DataFrame]:
    """The rows of a unit, about `chunk_bytes` at a time: the columns of `uses` in plain form, or all as they are."""
    of_column = dict(uses or ())
    with pq.ParquetFile(unit.path, pre_buffer=False, coerce_int96_timestamp_unit=_TIMES) as file:
        groups = range(unit.start, unit.stop)
        rows = sum(file.metadata.row_group(i).num_rows for i in groups)
        names = file.schema_arrow.names
        columns = [name for name in names if uses is None or name in of_column]
        columns = columns or names[:1]  # for the number of rows
        if not rows:
            yield pl.DataFrame(plain_table(file.schema_arrow.empty_table().select(columns), of_column))
            return
        batch_rows = max(1, min(rows, rows * chunk_bytes // max(1, unit.size)))
        for batch in file.iter_batches(batch_rows, groups, columns, use_threads=False):
            yield pl.DataFrame(plain_table(pa.Table.from_batches([batch]).select(columns), of_column))
