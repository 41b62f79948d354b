"""The raw files of a preparation, by split where they are split already."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cetnet.trainer.data.data_files import SUFFIXES, DataFile, Format, check_same_keys, data_files
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS


def input_files(raw: Path, format: Format, some: bool = False) -> Mapping[str, Sequence[DataFile]]:
    """A file, or the `data_files` of a directory: under "all", or by the names of SPLITS.

    They are split where the directory has a file or a directory for each of SPLITS (`some`: for one of them), with a
    suffix or without. Raises UserError for what is none of this.
    """
    try:
        return _input_files(raw, format, some)
    except OSError as error:
        raise UserError(f"{raw} cannot be read ({error.strerror}); make it readable") from error


def _input_files(raw: Path, format: Format, some: bool) -> Mapping[str, Sequence[DataFile]]:
    if raw.is_file():
        return {"all": [DataFile(raw, {})]}
    if not raw.is_dir():
        what = "is no regular file" if raw.exists() else "does not exist"
        raise UserError(f"{raw} {what}: give a {format} file or a directory of them")
    given = {name: files for name in SPLITS if (files := _of_split(raw, name, format))}
    if len(given) == len(SPLITS) or (given and some):
        check_same_keys([file for files in given.values() for file in files])
        return given
    if given:
        missing = ", ".join(name for name in SPLITS if name not in given)
        raise UserError(f"{raw} is split, but has no {format} data for {missing}: add it, or give one file")
    return {"all": data_files(raw, format)}


def _of_split(raw: Path, name: str, format: Format) -> Sequence[DataFile]:
    found = {}
    named = {name, *(name + suffix for suffix in SUFFIXES[format])}
    for place in sorted(path for path in raw.iterdir() if path.name.lower() in named):
        if place.is_dir():
            found[place.name] = data_files(place, format, may_be_none=True)
        elif place.exists() and place.name.lower() != name:
            found[place.name] = [DataFile(place, {})]
    found = {place: files for place, files in found.items() if files}
    if len(found) > 1:
        raise UserError(
            f"{raw} has {' and '.join(found)}, which would both be the {name} split: keep one of them"
        )
    return next(iter(found.values()), [])
