"""Which files of a directory are its data: for raw CSV and Parquet files, and for a split of a dataset."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote

from cetnet.trainer.errors import UserError

Format = Literal["csv", "parquet"]
KeyValues = Mapping[str, str | None]

PACKED = (".gz", ".bz2", ".xz", ".zst")
_TEXT = (".csv", ".tsv", ".txt")
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "csv": (*_TEXT, *(text + packed for packed in PACKED for text in _TEXT)),
    "parquet": (".parquet",),
}
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_PART = re.compile(
    r"(part-|bucket_|\d+_|\d+$)[^.]*(\.(gz|bz2|xz|zst))?"
)  # part-00000, 000000_0: of Spark, Hive, MapReduce
# Of what people keep beside data; a file with another ending may be data, too.
_BESIDE = (
    ".md",
    ".yaml",
    ".yml",
    ".html",
    ".pdf",
    ".png",
    ".log",
    ".sql",
    ".py",
    ".sh",
    ".md5",
    ".sha1",
    ".sha256",
)
_NO_SPLITS = ("vocabularies", "pretrained")  # folders of a dataset
_LOGGED_TABLES = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table"}


class DataFile(NamedTuple):
    """A file of data, and the values that its `key=value` directories give all its rows; None for a missing one."""

    path: Path
    keys: KeyValues


def data_files(folder: Path, format: Format, may_be_none: bool = False) -> list[DataFile]:
    """The files of a directory and of its `key=value` directories, in the order of their paths.

    Names that begin with "." or "_" are passed over. Where nothing has a suffix of the format (SUFFIXES), Parquet
    files are those that begin as such, and CSV files those named as Spark and Hive name parts. Links are followed.

    Raises:
        UserError: no such file, unless there may be none, and what there is instead; data in directories of other
            names, files of other formats beside (but for _BESIDE), a broken link or a file that is none, a directory
            that can't be read; a file packed and unpacked; keys that differ.
    """
    walk = _Walk(folder)
    suffixes = SUFFIXES[format]
    found = [file for file in walk.files if file.path.name.lower().endswith(suffixes)]
    for directory in walk.directories:
        if directory.name.lower().endswith(suffixes):
            raise UserError(
                f"{directory} is a directory, not a {format} file: give it by itself, or move its files up"
            )
        if inside := next(_files_below(directory, format), None):
            raise UserError(
                f"{folder} has {format} files in the subdirectory {directory.name} ({inside.name}), which would not "
                "be read: give that one, move its files up, or name it key=value (day=2024-01-01): the key becomes a "
                "column"
            )
    if not found:
        found = [file for file in walk.files if _is_part(file.path, format)]
    if not found and not may_be_none:
        raise UserError(f"{folder} holds no {format} files ({', '.join(suffixes)}){walk.what_else(format)}")
    others = [file.path.name for file in walk.files if file not in found and not _is_beside(file.path)]
    if found and others:
        raise UserError(
            f"{folder} has {len(found)} {format} files, and {len(others)} others ({_few(others)}) that would not be "
            f"read: take them out, or convert them and name them with a suffix ({suffixes[0]})"
        )
    for file in found:
        _check_regular(file.path)
    names = dict.fromkeys(file.path for file in found)
    for path, ending in product(names, PACKED):
        if (packed := path.with_name(path.name + ending)) in names:
            raise UserError(f"{path} and {packed.name} would both be read: keep one of them")
    check_same_keys(found)
    return found


def split_files(path: Path, split: str) -> list[DataFile]:
    """The Parquet files of a dataset's split, see `data_files`."""
    if not (path / split).is_dir() or split in _NO_SPLITS:
        folders = _entries(path)
        have = [
            name
            for name, is_directory in folders
            if is_directory
            and not _is_hidden(name)
            and name not in _NO_SPLITS
            and any(_files_below(path / name, "parquet"))
        ]
        raise UserError(f"{path / split}: no Parquet files; splits here: {', '.join(have) or 'none'}")
    return data_files(path / split, "parquet")


def split_around(path: Path) -> Path | None:
    """The folder with the rows of a dataset's split that a path, which need not exist, is in, if any."""
    for folder in path.absolute().parents:
        in_dataset = folder.is_dir() and (folder.parent / "schema.yaml").exists()
        if in_dataset and folder.name != "predictions" and _holds_rows(folder):
            return folder
    return None


def _holds_rows(folder: Path) -> bool:
    try:
        files = _Walk(folder).files
    except UserError:  # data files say so as they are read
        return False
    return any(file.path.name.lower().endswith(SUFFIXES["parquet"]) for file in files)


def check_same_keys(files: Sequence[DataFile]) -> None:
    """Raise UserError for files whose `key=value` directories have not all the same keys."""
    for file in files:
        if set(file.keys) != set(files[0].keys):
            here, there = (", ".join(sorted(keys)) or "none" for keys in (file.keys, files[0].keys))
            raise UserError(
                f"{file.path} is in directories with the keys {here}, but {files[0].path} with {there}: "
                "put all files under the same keys"
            )


def check_keys(file: Path, columns: Collection[str], keys: KeyValues) -> None:
    """Raise UserError for a file with a column that its directories give a value, too."""
    for key in keys:
        if key in columns:
            raise UserError(
                f"{file} has a column {key!r}, and is in a directory {key}=...: rename one of them"
            )


def _is_beside(path: Path) -> bool:
    return path.suffix.lower() in _BESIDE or path.name in ("README", "LICENSE", "CHECKSUM")


def _is_part(path: Path, format: Format) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable") from error
    return is_parquet if format == "parquet" else not is_parquet and _PART.fullmatch(path.name) is not None


def _check_regular(path: Path) -> None:
    if not path.is_file():
        what = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "no regular file"
        raise UserError(f"{path} is {what}: restore it, or remove it")


def _files_below(directory: Path, format: Format) -> Iterator[Path]:
    """Files that by their names may be data, at any depth."""
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not _is_hidden(name, is_directory=True))
        for name in sorted(names):
            is_data = name.lower().endswith(SUFFIXES[format]) or _PART.fullmatch(name)
            if is_data and not _is_hidden(name):
                yield Path(folder, name)


def _is_hidden(name: str, is_directory: bool = False) -> bool:
    """Whether a name is no data's, as Spark has it: of a directory, _key=value is."""
    return name.startswith(".") or (name.startswith("_") and not (is_directory and "=" in name))


class _Walk:
    """What is in a directory and its `key=value` directories.

    Attributes:
        files: in the order of their paths.
        directories: those of other names, which were not entered.
    """

    def __init__(self, folder: Path) -> None:
        self.files: list[DataFile] = []
        self.directories: list[Path] = []
        self._enter(folder, {}, ())

    def _enter(self, folder: Path, keys: KeyValues, above: tuple[tuple[int, int], ...]) -> None:
        entries, status = _entries(folder), folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise UserError(f"{folder} is a link to a directory that it is in: remove it")
        for name, is_directory in entries:
            path = folder / name
            if name in _LOGGED_TABLES and is_directory:
                raise UserError(
                    f"{folder} is {_LOGGED_TABLES[name]}, whose files hold replaced rows too: write its rows to "
                    "plain files first"
                )
            if _is_hidden(name, is_directory):
                continue
            if not is_directory:
                self.files.append(DataFile(path, keys))
            elif (key := _key(path)) is None:
                self.directories.append(path)
            elif key[0] in keys:
                raise UserError(f"{path}: the key {key[0]!r} is there twice: rename one directory")
            else:
                self._enter(path, {**keys, key[0]: key[1]}, (*above, here))

    def what_else(self, format: Format) -> str:
        """What is there instead of files of the format, and the remedy."""
        if self.directories:
            shown = _few(path.name for path in self.directories)
            return f", but subdirectories: {shown}; give one of them, or name them key=value"
        endings = sorted({"".join(file.path.suffixes[-2:]) or file.path.name for file in self.files})
        if not endings:
            return "; it is empty (names that begin with . or _ aside)"
        other = next((other for other in SUFFIXES if other != format), format)
        readable = any(ending.lower().endswith(SUFFIXES[other]) for ending in endings)
        remedy = f"read them with `cetnet prepare {other}`" if readable else f"convert them to {format}"
        return f", but {len(self.files)} others ({_few(endings)}): {remedy}"


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Names in a directory, in their order, and whether each is of a directory."""
    try:
        with os.scandir(folder) as scan:
            return sorted((entry.name, _is_directory(entry)) for entry in scan)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); make it readable") from error


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _key(directory: Path) -> tuple[str, str | None] | None:
    """Key and value of a directory named key=value, as Hive and Spark write them; None for another name."""
    key, equals, value = directory.name.partition("=")
    if not key or not equals:
        return None
    try:
        directory.name.encode()
        key, value = unquote(key, errors="strict"), unquote(value, errors="strict")
    except UnicodeError:
        raise UserError(f"{directory}: its name is not UTF-8: rename it") from None
    return key, None if value == _NO_VALUE else value
