"""Parquet files whose bytes depend on nothing but their rows."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 16_384
ROWS_PER_FILE = 64 * ROW_GROUP_ROWS


class PartWriter:
    """One Parquet file whose row groups have exactly ROW_GROUP_ROWS rows (but the last), whatever it is given.

    `seen` is called with the rows of each: what it makes of them doesn't depend on how they were given, either.
    """

    def __init__(
        self, path: Path, columns: pa.Schema, seen: Callable[[pa.Table], None] | None = None
    ) -> None:
        self._seen = seen
        self._writer = pq.ParquetWriter(path, columns, compression="zstd", write_page_checksum=True)
        self._pending = columns.empty_table()

    def write(self, table: pa.Table) -> None:
        """Add rows; memory: less than a row group besides `table`."""
        table = pa.concat_tables([self._pending, table])
        whole = table.num_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
        for start in range(0, whole, ROW_GROUP_ROWS):
            self._write_group(table.slice(start, ROW_GROUP_ROWS))
        self._pending = table.slice(whole).combine_chunks()

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._pending.num_rows:
            self._write_group(self._pending)
        self._writer.close()

    def _write_group(self, table: pa.Table) -> None:
        table = table.combine_chunks()  # the bytes of a page depend on how a column is chunked
        if self._seen is not None:
            self._seen(table)
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)


def part_name(number: int) -> str:
    """File name of a part of a split, which holds ROWS_PER_FILE rows (but the last)."""
    return f"part-{number:05d}.parquet"
