"""The Arrow files that tasks leave to later tasks: compressed, and read batch by batch."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

BATCH_ROWS = 16_384
IPC_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)


def read_batch(path: Path, number: int) -> pa.RecordBatch:
    """One batch of a file."""
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        return file.get_batch(number)


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """All batches of a file, one at a time."""
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            yield file.get_batch(number)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """A table as a batch, which may be empty."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


class RowWriter:
    """An Arrow file in batches of exactly BATCH_ROWS rows (but the last), so that a row's batch is known."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = pa.ipc.new_file(path, schema, options=IPC_OPTIONS)
        self._pending = schema.empty_table()

    def write(self, table: pa.Table) -> None:
        """Add rows; memory: less than a batch besides `table`."""
        table = pa.concat_tables([self._pending, table]) if self._pending.num_rows else table
        whole = table.num_rows // BATCH_ROWS * BATCH_ROWS
        for start in range(0, whole, BATCH_ROWS):
            self._file.write_batch(one_batch(table.slice(start, BATCH_ROWS)))
        self._pending = table.slice(whole)

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pending.num_rows:
            self._file.write_batch(one_batch(self._pending))
        self._file.close()
