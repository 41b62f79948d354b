"""Publishers' files that are no table yet: tasks make rows of them, before `prepare_table` takes these."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from cetnet.trainer.prepare.engine.layout import check_out
from cetnet.trainer.prepare.engine.tasks import identity
from cetnet.trainer.prepare.engine.workplace import Workplace, workplace


@contextmanager
def conversion(
    out: Path,
    raw: Sequence[Path],
    settings: Mapping[str, Any],
    engine: Mapping[str, Any],
    packed: bool = False,
) -> Iterator[Workplace]:
    """Where tasks make rows of `raw`: `.NAME.rows.work` beside `out`, which is removed at the end; see `work_folder`.

    All that is left of it is what `prepare_table` makes of its files; killed, the same command goes on.

    `settings` say what the rows depend on beside the files; `engine` are memory, workers, scheduler and overwrite of
    `prepare_table`; `packed`: the files are not text, so rows take more of the disk than they.
    """
    check_out(out, engine.get("overwrite", False))
    job = {"files": [identity(path) for path in raw], **settings}
    rows = out.with_name(f"{out.name}.rows")
    with workplace(rows, raw, job, packed=packed, **engine) as place:
        yield place


def write_splits(folder: Path, frames: Iterable[tuple[str, pl.DataFrame]]) -> None:
    """Write (split, frame) pairs as `<split>.parquet` in the folder, a row group a frame."""
    writers: dict[str, pq.ParquetWriter] = {}
    try:
        for split, frame in frames:
            table = frame.to_arrow()
            if split not in writers:
                path = folder / f"{split}.parquet"
                writers[split] = pq.ParquetWriter(path, table.schema, compression="zstd")
            writers[split].write_table(table)
    finally:
        for writer in writers.values():
            writer.close()
