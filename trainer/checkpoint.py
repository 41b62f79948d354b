"""Checkpoints: whole or absent, loadable on another world size and plan, and never executed.

A checkpoint is a directory written by torch.distributed.checkpoint (tables, dense parameters, optimizers)
with `trainer.json` (step, metric sums, configuration, schema). It is written under a temporary name and
published by one rename.
"""

import io
import itertools
import json
import pickle
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from trainer.errors import UserError


class Checkpoints:
    """The checkpoints of a run, saved in the background; every rank has one and calls it at the same steps.

    Args:
        folder: where they are.
        keep: how many of the newest `step-*` are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        # Collectives of a save run beside those of training, hence a group of their own.
        self._group = dist.new_group(backend="gloo")
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if dist.get_rank() == 0:
            _mend(folder)
        dist.barrier(group=self._group)

    def save(
        self, name: str, model: DistributedModelParallel, optimizer: KeyedOptimizer, trainer: dict[str, Any]
    ) -> None:
        """Copy the state now, write and publish it in the background; a save still under way is awaited."""
        self.wait()
        temporary = self._folder / f".{name}.tmp"
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            (temporary / "trainer.json").write_text(json.dumps(trainer))
        dist.barrier(group=self._group)
        state = {"model": model.state_dict(), "optim": optimizer.state_dict()}
        self._pending = self._writer.submit(self._write, _copy_to_cpu(state, self._group), temporary, name)

    def wait(self) -> None:
        """Wait until the save under way, if any, is published on this rank; raises its error."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        """Finish the save under way; afterwards every rank can read it."""
        self.wait()
        dist.barrier(group=self._group)
        self._writer.shutdown()

    def _write(self, state: dict[str, Any], temporary: Path, name: str) -> None:
        # Not `dcp.async_save`: its stagers can't copy a ShardedTensor (torch 2.13).
        dcp.save(state, checkpoint_id=temporary, process_group=self._group)
        if dist.get_rank() != 0:
            return
        final, old = self._folder / name, self._folder / f".{name}.old"
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        for path in sorted(self._folder.glob("step-*"))[: -self._keep]:
            _remove(path)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that a crash in between leaves no part of it under its name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def _mend(folder: Path) -> None:
    """Finish what a crash cut short: a checkpoint that was set aside for a newer one, and remains of others."""
    for old in folder.glob(".*.old"):
        final = folder / old.name.removeprefix(".").removesuffix(".old")
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)
    for temporary in folder.glob(".*.tmp"):
        shutil.rmtree(temporary)


def _copy_to_cpu(value: Any, group: dist.ProcessGroup) -> Any:
    """A copy of a state that training can't change any more."""
    if isinstance(value, dict):
        return {key: _copy_to_cpu(item, group) for key, item in value.items()}
    if isinstance(value, ShardedTensor):
        shards = value.local_shards()
        if any(shard.tensor.is_cuda for shard in shards):
            return value.cpu(process_group=group)
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            [Shard(shard.tensor.detach().clone(), shard.metadata) for shard in shards],
            sharded_tensor_metadata=value.metadata(),
            process_group=group,
        )
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole `step-*` checkpoint."""
    return max(folder.glob("step-*"), default=None)


def read_trainer_state(checkpoint: Path) -> dict[str, Any]:
    """What `trainer.json` holds; raises UserError if it can't be read."""
    file = checkpoint / "trainer.json"
    try:
        state = json.loads(file.read_text())
        if not (isinstance(state, dict) and {"progress", "ne"} <= state.keys()):
            raise ValueError("not the state of a trainer")
        return state
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: not readable ({error}); remove {checkpoint} to use the one before"
        ) from error


def load_checkpoint(
    checkpoint: Path, model: DistributedModelParallel, optimizer: KeyedOptimizer | None = None
) -> None:
    """Load parameters, and with an optimizer its state too, whatever the world size and plan were.

    Raises:
        UserError: the checkpoint is damaged or of another model.
    """
    state: dict[str, Any] = {"model": model.state_dict()}
    if optimizer is not None:
        optimizer.init_state()  # creates the dense state, which would otherwise be left out in silence
        state["optim"] = optimizer.state_dict()
    try:
        dcp.load(state, storage_reader=SafeReader(checkpoint), planner=_SafePlanner())
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise UserError(
            f"{checkpoint}: damaged or of another model ({reason}); remove it to use the one before"
        ) from error
    model.load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optim"])


class SavedTable(NamedTuple):
    """An embedding table of a checkpoint: the component it belongs to (or `shared`, `pretrained`), its name there,
    its key in the checkpoint, and its size."""

    owner: str
    name: str
    key: str
    rows: int
    dim: int


class SavedTables:
    """The embedding tables of a checkpoint, sharded or dense, to be read without the model.

    Raises:
        UserError: the checkpoint cannot be read.
    """

    _KEY = re.compile(
        r"model\.tables\.(?P<owner>[^.]+)\.collections\.[^.]+\.embedding(_bag)?s\.(?P=owner)__(?P<name>[^.]+)\.weight"
    )

    def __init__(self, checkpoint: Path) -> None:
        self._reader = SafeReader(checkpoint)
        try:
            metadata = self._reader.read_metadata()
        except Exception as error:  # unpickling a damaged file may raise anything
            raise _damaged(checkpoint, error) from None
        self._checkpoint = checkpoint
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._metadata: dict[str, TensorStorageMetadata] = {}
        self.tables: list[SavedTable] = []
        for key, tensor in metadata.state_dict_metadata.items():
            if (match := self._KEY.fullmatch(key)) and isinstance(tensor, TensorStorageMetadata):
                self._metadata[key] = tensor
                self.tables.append(SavedTable(match["owner"], match["name"], key, *tensor.size))

    def blocks(self, tables: Sequence[SavedTable]) -> Iterator[torch.Tensor]:
        """The rows of tables of equal length side by side, `[block, sum of dims]`, from the first to the last.

        A block ends where a shard of one of the tables does, so that it takes twice the memory of these shards.
        """
        ends = {tables[0].rows}
        for table in tables:
            ends.update(int(chunk.offsets[0]) for chunk in self._metadata[table.key].chunks)
        bounds = sorted(ends | {0})
        for start, end in itertools.pairwise(bounds):
            parts, items = {}, []
            for table in tables:
                chunk = ChunkStorageMetadata(torch.Size([start, 0]), torch.Size([end - start, table.dim]))
                metadata = self._metadata[table.key]
                parts[table.key] = torch.empty(chunk.sizes, dtype=metadata.properties.dtype)
                items += create_read_items_for_chunk_list(table.key, metadata, [chunk])
            try:
                self._reader.read_data(LoadPlan(items), _PartsPlanner(parts)).wait()
            except Exception as error:  # as for the metadata
                raise _damaged(self._checkpoint, error) from None
            yield torch.cat(list(parts.values()), dim=1)


def _damaged(checkpoint: Path, error: Exception) -> UserError:
    """Of torch's message the first sentence: what follows may advise to unpickle the file after all."""
    reason = str(error).split("\n")[0].split(". ")[0]
    return UserError(f"{checkpoint}: damaged ({type(error).__name__}: {reason}); remove it")


class SafeReader(FileSystemReader):
    """Reads a checkpoint's metadata, a pickle, with an unpickler that knows only its own data classes."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Metadata of the checkpoint; raises pickle.UnpicklingError for anything that isn't metadata."""
        metadata = _MetadataUnpickler(io.BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("not the metadata of a checkpoint")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    _ALLOWED: ClassVar = {
        "torch.distributed.checkpoint.metadata": {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch.serialization": {"_get_layout"},
        "torch": {"Size"},
        "pathlib": {"Path", "PosixPath"},
        "pathlib._local": {"Path", "PosixPath"},
    }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name in self._ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"metadata refers to {module}.{name}, which no checkpoint needs")


class _SafePlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:  # noqa: ARG002
        """Our checkpoints hold tensors only; anything else would be unpickled."""
        raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is not a tensor")


class _PartsPlanner(_SafePlanner):
    """Reads into given tensors, by key."""

    def __init__(self, parts: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._parts = parts

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self._parts[index.fqn]
