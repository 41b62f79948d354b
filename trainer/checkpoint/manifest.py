"""What a checkpoint's files were when it was written: `manifest.json` has the size and the checksum of each."""

import hashlib
import os
from pathlib import Path

import torch.distributed as dist
from pydantic import BaseModel, TypeAdapter, ValidationError

from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.processes.distributed import on_every_rank, on_main

MANIFEST = "manifest.json"


class _File(BaseModel):
    bytes: int
    blake2b: str


_FILES = TypeAdapter(dict[str, _File])


def write_manifest(folder: Path, group: dist.ProcessGroup) -> None:
    """Write the manifest of a folder that torch.distributed.checkpoint filled; every rank of the group calls it.

    Each rank reads back what it wrote, and rank 0 what is of no rank. On rank 0 all is on the disk afterwards.
    """
    parts = on_every_rank(lambda: _describe_own(folder, dist.get_rank(group)), group)

    def write() -> None:
        files = {name: file for part in parts for name, file in part.items()}
        (folder / MANIFEST).write_bytes(_FILES.dump_json(files, indent=1))
        for path in (*(folder / name for name in parts[0]), folder / MANIFEST, folder):
            sync(path)

    on_main(write, group)


def _describe_own(folder: Path, rank: int) -> dict[str, _File]:
    own = [path for path in folder.iterdir() if path.name.startswith(f"__{rank}_")]
    if rank == 0:
        own += [path for path in folder.iterdir() if not path.name.startswith("__")]
    return {path.name: _describe(path) for path in own}


def find_damage(folder: Place, rank: int = 0, world_size: int = 1) -> str | None:
    """The first difference between the manifest and a rank's share of the files; None too if there is no manifest."""
    try:
        files = _FILES.validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        return f"{MANIFEST} is not readable"
    if ".metadata" not in files:
        return f"{MANIFEST} lacks .metadata"
    for name in sorted(files)[rank::world_size]:
        try:
            found = _describe(folder / name)
            if found.bytes != files[name].bytes:
                return f"{name} has {found.bytes} of {files[name].bytes} bytes"
            if found != files[name]:
                return f"{name} was altered: its checksum differs"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} is not readable: {error.strerror}"
    return None


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(path: Place) -> _File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()
        return _File(bytes=file.tell(), blake2b=digest)
