"""An object store for tests: `bucket://...`, kept in the folder BUCKETS, the same for all processes.

Like S3 it knows no folders, only keys; an object appears whole, when its upload ends; and nothing can be renamed,
appended to or changed. Each key is a file whose name is the key, quoted.
"""

import io
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import fsspec
from fsspec.spec import AbstractFileSystem


class Bucket(AbstractFileSystem):
    protocol = "bucket"
    before: ClassVar[Callable[[str, str], object] | None] = None
    """Called before an upload ("put") or a download ("get") of a key; it may raise."""

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        prefix = f"{self._strip_protocol(path)}/".lstrip("/")
        found: dict[str, dict[str, Any]] = {}
        for file in Path(os.environ["BUCKETS"]).iterdir():
            key = unquote(file.name)
            if file.suffix != ".uploading" and (key.startswith(prefix) or key == prefix[:-1]):
                rest = key.removeprefix(prefix)
                name = prefix + rest.split("/")[0] if key != prefix[:-1] else key
                is_file = name == key
                size = file.stat().st_size if is_file else 0
                found[name] = {"name": name, "size": size, "type": "file" if is_file else "directory"}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(file_of(path).stat().st_mtime, UTC)

    def rm_file(self, path: str) -> None:
        file_of(path).unlink()

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode == "rb":
            if Bucket.before:
                Bucket.before("get", path)
            return file_of(path).open("rb")
        if mode == "wb":
            return _Upload(path)
        raise NotImplementedError(f"objects can't be opened for {mode}")

    def mkdir(self, path: str, **_: Any) -> None:
        raise NotImplementedError("there are no folders")

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        raise NotImplementedError("objects can't be copied or renamed")


class _Upload(io.BytesIO):
    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            super().close()

    def close(self) -> None:
        if self.closed:
            return
        content = self.getvalue()
        super().close()
        if Bucket.before:
            Bucket.before("put", self._key)
        file = file_of(self._key)
        aside = file.with_name(f"{file.name}.{os.getpid()}.uploading")
        aside.write_bytes(content)
        aside.rename(file)


def file_of(key: str) -> Path:
    """The file of an object: of a key, or its URL."""
    return Path(os.environ["BUCKETS"]) / quote(Bucket._strip_protocol(key), safe="")


def keys() -> list[str]:
    """All keys, in order."""
    return sorted(unquote(file.name) for file in Path(os.environ["BUCKETS"]).iterdir())


fsspec.register_implementation("bucket", Bucket)
