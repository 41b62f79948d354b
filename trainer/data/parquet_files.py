"""The Parquet files of a split: their footers, and columns of their row groups as they are there."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.trainer.data.blocks import BlockReader
from cetnet.trainer.errors import UserError

BLOCK_ROWS = 1 << 15
_BUFFER_BYTES = 1 << 20
_OPEN_ROW_GROUPS = 3  # where one ends, threads read the next one already


@dataclass(frozen=True)
class RowGroup:
    """A Parquet row group and where its first row stands in the split, and in its file.

    Read in blocks, a large one is several of these, of BLOCK_ROWS rows each; `block` is their number.
    """

    file: Path
    index: int
    num_rows: int
    first_row: int
    row_in_file: int
    block: int | None = None

    def __str__(self) -> str:
        return f"{self.file}, row group {self.index}"


@dataclass(frozen=True)
class Footer:
    """What a file said of itself when it was opened first, and what its directory entry was then.

    Attributes:
        row_groups: their numbers of rows.
        entry: size in bytes and time of the last change in nanoseconds.
    """

    metadata: pq.FileMetaData
    columns: pa.Schema
    row_groups: list[int]
    entry: tuple[int, int]

    def type_of(self, name: str) -> pa.DataType | None:
        """The type of a column; None if there is none, or several of this name."""
        return self.columns.field(name).type if self.columns.names.count(name) == 1 else None


class ParquetFiles:
    """Reads row groups of files; raises UserError for one that can't be read, or was changed since this was made.

    Attributes:
        footers: by file.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.footers = {file: _read_footer(file) for file in files}
        self._blocks: OrderedDict[tuple[Path, int, tuple[str, ...]], BlockReader] = OrderedDict()
        self._lock = Lock()

    def row_groups(self, file: Path, first_row: int, in_blocks: bool) -> list[RowGroup]:
        """Those of a file, whose first row is `first_row` of the split."""
        groups: list[RowGroup] = []
        row = 0
        for index, num_rows in enumerate(self.footers[file].row_groups):
            cut = in_blocks and num_rows > BLOCK_ROWS
            for block, start in enumerate(range(0, num_rows, BLOCK_ROWS) if cut else [0]):
                rows = min(BLOCK_ROWS, num_rows - start) if cut else num_rows
                groups.append(
                    RowGroup(file, index, rows, first_row + row + start, row + start, block if cut else None)
                )
            row += num_rows
        return groups

    def stored(self, group: RowGroup, columns: Sequence[str]) -> pa.Table:
        """Columns as the file has them."""
        footer, problem = self.footers[group.file], None
        try:
            if group.block is not None:
                table = self._block_reader(group, columns).read(group.block)
            else:
                with self._open(group.file) as file:
                    table = file.read_row_group(group.index, columns=list(columns), use_threads=False)
            if table.num_rows != group.num_rows:
                problem = f"{table.num_rows} rows where its footer says {group.num_rows}"
        except (OSError, ValueError, pa.ArrowException) as error:
            problem = _first_line(error)
        if changed := _changed(group.file, footer):
            raise UserError(f"{group.file}: {changed}; restore it, or start a new run")
        if problem:
            raise UserError(f"{group}: cannot be read ({problem}); prepare the data again")
        return table

    def _block_reader(self, group: RowGroup, columns: Sequence[str]) -> BlockReader:
        key = (group.file, group.index, tuple(columns))
        with self._lock:
            if key not in self._blocks:
                open_file = partial(self._open, group.file, in_blocks=True)
                self._blocks[key] = BlockReader(open_file, group.index, list(columns), BLOCK_ROWS)
                while len(self._blocks) > _OPEN_ROW_GROUPS:
                    self._blocks.popitem(last=False)
            return self._blocks[key]

    def _open(self, file: Path, in_blocks: bool = False) -> pq.ParquetFile:
        # A ParquetFile isn't safe to share between threads; its parsed footer is. Not mapped into memory: a file
        # that is truncated meanwhile would kill the process (SIGBUS).
        return pq.ParquetFile(
            file,
            metadata=self.footers[file].metadata,
            page_checksum_verification=True,
            pre_buffer=not in_blocks,
            buffer_size=_BUFFER_BYTES if in_blocks else 0,
        )


def _read_footer(file: Path) -> Footer:
    try:
        stat = file.stat()
        metadata = pq.read_metadata(file)
        return Footer(
            metadata=metadata,
            columns=metadata.schema.to_arrow_schema(),
            row_groups=[metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)],
            entry=(stat.st_size, stat.st_mtime_ns),
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the content
            raise UserError(
                f"{file}: cannot be read ({os.strerror(error.errno)}); make it readable"
            ) from error
        raise UserError(
            f"{file}: not a whole Parquet file ({_first_line(error)}); prepare the data again"
        ) from error


def _changed(file: Path, footer: Footer) -> str | None:
    """What happened to the file since its footer was read."""
    try:
        stat = file.stat()
    except OSError as error:
        return f"was there when the run began and is no more ({error.strerror})"
    return None if (stat.st_size, stat.st_mtime_ns) == footer.entry else "was changed since the run began"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
