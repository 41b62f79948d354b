"""Text files as UTF-8, whatever they are compressed by and encoded in."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from cetnet.trainer.byte_order_marks import marked_encoding
from cetnet.trainer.errors import UserError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NO_TEXT = {
    b"PK\x03\x04": "a zip archive (or an Excel file): unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel file: save the sheet as CSV",
    b"ARROW1\x00\x00": "an Arrow file: write Parquet, and use `cetnet prepare parquet`",
    b"Obj\x01": "an Avro file: write Parquet, and use `cetnet prepare parquet`",
    b"\x89HDF": "an HDF5 file: write CSV or Parquet",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"Rar!\x1a": "a rar archive: unpack it",
    b"\x04\x22\x4d\x18": "compressed by lz4: unpack it, or use gzip, bz2, xz or zstd",
    b"\x1f\x9d": "compressed by compress: unpack it, or use gzip, bz2, xz or zstd",
}
_PIECE = 1 << 16


class Damaged(Exception):
    """What is wrong with the bytes that follow those read, and the remedy."""


def compression(path: Path) -> str | None:
    """What a file is compressed by, of its first bytes."""
    with path.open("rb") as file:
        head = file.read(10)
    if head.startswith(b"BZh") and head[4:] not in (b"1AY&SY", b"\x17rE8P\x90"):
        return None
    return next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)


def _check_text(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(10)
        file.seek(max(0, path.stat().st_size - 4))
        if head.startswith(b"PAR1") and file.read() == b"PAR1":
            raise UserError(f"{path} is a Parquet file: use `cetnet prepare parquet`")
    for magic, what in _NO_TEXT.items():
        if head.startswith(magic):
            raise UserError(f"{path} is not text, but {what}")


def is_stream(path: Path, encoding: str) -> bool:
    """Whether a text file can only be read from its start: compressed, or in another encoding than UTF-8."""
    return not _is_utf8(encoding) or compression(path) is not None


def mark_bytes(path: Path) -> int:
    """Length of a UTF-8 file's byte order mark."""
    with path.open("rb") as file:
        return 3 if file.read(3) == codecs.BOM_UTF8 else 0


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


class Utf8Stream:
    """The text of a file as UTF-8, without a byte order mark; `read` raises Damaged after all that is good."""

    def __init__(self, file: Any, path: Path, encoding: str) -> None:
        self._read = getattr(file, "read1", file.read)
        self._decoder = None if _is_utf8(encoding) else codecs.getincrementaldecoder(encoding)()
        self._encoding, self._ended, self._damage = encoding, False, ""
        self._ready = b""
        head = self._raw(_PIECE)
        while not self._ended and len(head) < 4:
            head += self._raw(_PIECE)
        found = marked_encoding(head)
        if found and not codecs.lookup(encoding).name.startswith(found):
            remedy = "leave out `encoding`" if found == "utf-8" else f"set `encoding: {found}` in the schema"
            raise UserError(f"{path} begins as {found} text, not as {encoding}: {remedy}")
        self._ready = self._utf8(head).removeprefix(codecs.BOM_UTF8)

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or as many as there are."""
        parts = [self._ready]
        length = len(self._ready)
        while length < size and not self._ended:
            parts.append(self._utf8(self._raw(_PIECE)))
            length += len(parts[-1])
        if not length and self._damage:
            raise Damaged(self._damage)
        ready = b"".join(parts)
        self._ready = ready[size:]
        return ready[:size]

    def _raw(self, size: int) -> bytes:
        try:
            raw: bytes = self._read(size)
        except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the content
                raise
            self._damage = f"the compressed file is damaged or cut short here ({error}): get it again"
            raw = b""
        self._ended = not raw
        return raw

    def _utf8(self, raw: bytes) -> bytes:
        if self._decoder is None:
            return raw
        state = self._decoder.getstate()
        try:
            return self._decoder.decode(raw, self._ended and not self._damage).encode()
        except UnicodeError as error:
            self._ended = True
            self._damage = f"bytes that are not {self._encoding} ({error}): set `encoding` to the file's"
            if not isinstance(error, UnicodeDecodeError):  # nothing says how much is good
                return b""
            good = max(0, error.start - (len(error.object) - len(raw)))
            self._decoder.setstate(state)
            with suppress(UnicodeError):
                return self._decoder.decode(raw[:good]).encode()
            return b""


@contextmanager
def open_text(path: Path, encoding: str, start: int = 0) -> Iterator[Utf8Stream | BinaryIO]:
    """A file to `read` as UTF-8 from the byte `start` of its text; one that is no text is a UserError.

    Of a file that is not `is_stream`, `start` counts its bytes, `mark_bytes` included; 0 is behind the mark, too.
    """
    _check_text(path)
    kind = compression(path)
    with _opened(path, kind) as file:
        if kind is None and _is_utf8(encoding) and start:
            file.seek(start)
            yield file
            return
        stream = Utf8Stream(file, path, encoding)
        while start and (skipped := stream.read(min(start, 1 << 20))):
            start -= len(skipped)
        yield stream


def _opened(path: Path, kind: str | None) -> Any:
    if kind == "gzip":
        return gzip.open(path)
    if kind == "bz2":
        return bz2.open(path)
    if kind == "xz":
        return lzma.open(path)
    return pa.input_stream(str(path), compression="zstd") if kind == "zstd" else path.open("rb")
