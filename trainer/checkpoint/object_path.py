"""Places in object stores, through fsspec: what reading and writing checkpoints there takes."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from cetnet.trainer.errors import UserError


class Stat(NamedTuple):
    """What is known of an object, under the names that `Path.stat` has for it."""

    st_size: int
    st_mtime_ns: int


class ObjectPath:
    """A place in an object store, with as much of pathlib's interface as reading a checkpoint takes.

    Whatever a driver raises, and each has exceptions of its own, becomes a UserError that names the place; but those
    who read get a FileNotFoundError for what isn't there.
    """

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        self._fs, self._path = fs, path

    def __str__(self) -> str:
        return self._fs.unstrip_protocol(self._path)

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self._fs, f"{self._path}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._path.rpartition("/")[2]

    @property
    def parent(self) -> "ObjectPath":
        """The place that this one is in."""
        return ObjectPath(self._fs, self._path.rpartition("/")[0])

    def exists(self) -> bool:
        """Whether there is an object of this name."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def stat(self) -> Stat:
        """Size and time of writing."""
        with self._request(may_be_missing=True):
            self._fs.invalidate_cache()
            modified = self._fs.modified(self._path)
            return Stat(self._fs.size(self._path), int(modified.timestamp() * 1e9))

    def open(self, mode: str = "rb") -> io.RawIOBase:
        """The object, for reading."""
        assert mode == "rb"
        with self._request(may_be_missing=True):
            return _Reading(self, self._fs.open(self._path, "rb"))

    def read_bytes(self) -> bytes:
        """The whole object."""
        with self._request(may_be_missing=True):
            return self._fs.cat_file(self._path)

    def read_text(self, encoding: str) -> str:
        """The whole object, which is text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Make or replace the object, at once."""
        with self._request():
            self._fs.pipe_file(self._path, content)

    def upload(self, file: Path) -> None:
        """Make the object of a local file."""
        with self._request():
            self._fs.put_file(str(file), self._path)

    def unlink(self) -> None:
        """Remove the object."""
        with self._request():
            self._fs.rm_file(self._path)

    def remove_all(self, names: list[str]) -> None:
        """Remove objects below."""
        with self._request():
            if names:
                self._fs.rm([f"{self._path}/{name}" for name in names])

    def sizes(self) -> dict[str, int]:
        """All objects below, by what their names have more than this one's: bytes."""
        with self._request():
            self._fs.invalidate_cache()
            found = self._fs.find(self._path, detail=True)
            return {name.removeprefix(f"{self._path}/"): info["size"] for name, info in found.items()}

    def check_rights(self) -> None:
        """Write, list and remove a small object below; raises UserError if the store refuses."""
        # One for each rank, not for each start: they stay where objects may not be removed.
        probe = self / f"probe-{os.environ.get('RANK', 0)}"
        probe.write_bytes(b"")
        self.sizes()
        probe.unlink()

    @contextmanager
    def _request(self, may_be_missing: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if may_be_missing and isinstance(error, FileNotFoundError):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{self}: the store refused a request ({reason}); look at its address, the credentials and their "
                "rights, and try again (training: with --resume)"
            ) from error


class _Reading(io.RawIOBase):
    """An object that is read, as a file."""

    def __init__(self, path: ObjectPath, stream: Any) -> None:
        self._object, self._stream = path, stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._object._request():
            return self._stream.readinto(buffer)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        super().close()


Place = Path | ObjectPath
"""A place of checkpoints, or one in it."""


def parse_place(place: str, key: str) -> Place:
    """A local path, also as `file://...`, or the URL of an object store.

    Raises:
        UserError: naming the key of the configuration; a driver is missing, or refuses the URL.
    """
    protocol, separator, _ = place.partition("://")
    if not separator or protocol in LocalFileSystem.protocol:
        return Path(LocalFileSystem._strip_protocol(place) if separator else place)
    for several in ("*", "?", "[", "::"):
        if several in place:
            raise UserError(f"{key}={place}: the URL of a place has no {several!r}; name one place")
    try:
        return ObjectPath(*url_to_fs(place))
    except Exception as error:  # each driver has its own
        # fsspec says which package a driver lacks
        remedy = "install it" if isinstance(error, ImportError) else "give a URL that fsspec knows"
        raise UserError(f"{key}={place}: {' '.join(str(error).split())}; {remedy}") from error
