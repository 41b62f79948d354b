"""Raw CSV files as Parquet files of the same texts, which can be read in parts; for `raw_split`."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.trainer.console import progress_bar
from cetnet.trainer.data.data_files import DataFile
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import write_json
from cetnet.trainer.prepare.engine.chunks import frames, units
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding
from cetnet.trainer.prepare.raw_split import RawRows, run_encoding
from cetnet.trainer.run_folder import load_run

_CHUNK_BYTES = 16_000_000
_ORIGINS = ".origins.json"


def check_csv(run: Path, rows: RawRows, beside: Sequence[str], *, labelled: bool) -> None:
    """Raise UserError for what the headers of the files tell: a missing column, one of `beside` among them."""
    spec = _encoding(run, rows).raw
    for number, file in enumerate(rows.files):
        (unit,) = units(file.path, number, None, "csv", spec, [], _CHUNK_BYTES, file.keys, named=False)
        present = [*unit.columns, *file.keys]
        roles = [spec.label, spec.weight, spec.group] if labelled else []
        for name in [*(feature.raw for feature in spec.features), *roles, *beside]:
            if name is None or name in present:
                continue
            if name == spec.label:
                raise UserError(
                    f"{file.path} has no column {name!r} with the label, which metrics need; `cetnet predict` scores "
                    "such rows"
                )
            raise UserError(f"{file.path} has no column {name!r}; it has {', '.join(map(repr, present))}")


def stage_csv(run: Path, rows: RawRows, beside: Sequence[str], folder: Path) -> None:
    """Write a Parquet file of texts for each CSV file; raises UserError for what isn't CSV.

    Args:
        run: whose columns are kept.
        rows: the files.
        beside: other columns that are kept.
        folder: an empty one.
    """
    spec = _encoding(run, rows).raw
    wanted = {*spec.raw_columns, *beside}
    origins: dict[str, str] = {}
    for number, file in enumerate(rows.files):
        target = folder / f"part-{number:06d}.parquet"
        origins[target.name] = str(file.path)
        (unit,) = units(file.path, number, None, "csv", spec, [], _CHUNK_BYTES, file.keys, named=False)
        names = [name for name in (*unit.columns, *file.keys) if name in wanted]
        columns = pa.schema([(name, pa.large_string()) for name in names])
        with progress_bar() as progress, pq.ParquetWriter(target, columns, compression="zstd") as writer:
            task = progress.add_task(f"{file.path.name} (rows)", total=None)
            for frame in frames(unit, "csv", spec, _CHUNK_BYTES, named=True):
                writer.write_table(frame.select(names).to_arrow().cast(columns))
                progress.advance(task, frame.height)
    write_json(folder / _ORIGINS, {"path": str(rows.path), "split": rows.split, "origins": origins})


def staged_rows(folder: Path) -> RawRows | None:
    """What `stage_csv` wrote there; None if it is no such folder."""
    if not (folder / _ORIGINS).is_file():
        return None
    content = json.loads((folder / _ORIGINS).read_text(encoding="utf-8"))
    origins = {folder / name: Path(path) for name, path in content["origins"].items()}
    files = [DataFile(path, {}) for path in origins]
    return RawRows(Path(content["path"]), content["split"], "parquet", files, origins)


def _encoding(run: Path, rows: RawRows) -> RawEncoding:
    _, schema = load_run(run, resolve=False)
    encoding = run_encoding(run, schema)
    if encoding is None:
        raise UserError(
            f"{rows.path} is CSV, and {run} was trained on Parquet files that say themselves what their columns are: "
            "convert it to Parquet with the columns of its schema.yaml"
        )
    return encoding
