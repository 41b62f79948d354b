"""Checkpoints: whole or absent, loadable on another world size and plan, and never executed.

A checkpoint is a directory written by torch.distributed.checkpoint (tables, dense parameters, optimizers)
with `trainer.json` (step, metric sums, configuration, schema) and a manifest of all files. It is written under a
temporary name, read back, and published by one rename.
"""

import itertools
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from cetnet.sharding.plan_table import human_bytes
from cetnet.trainer.checkpoint.manifest import MANIFEST, find_damage, write_manifest
from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.checkpoint.safe_load import OtherModelError, SafePlanner, SafeReader
from cetnet.trainer.checkpoint.store import CHECKPOINTS, checkpoint_place, open_store
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import console
from cetnet.trainer.errors import UserError
from cetnet.trainer.optimizers import fused_tables
from cetnet.trainer.processes.distributed import PATIENCE, on_every_rank, on_main

_RESCUE = 60.0  # seconds


class Checkpoints:
    """The checkpoints of a run, saved in the background; every rank has one and calls it at the same steps.

    Args:
        folder: where they are.
        keep: how many of the newest `step-*` are kept.
        aside: a local folder for what is uploaded from there; only an object store needs it.
    """

    def __init__(self, folder: Place, keep: int, aside: Path | None = None) -> None:
        self._folder, self._keep, self._aside = folder, keep, aside
        self._store = open_store(folder, aside)
        # Collectives of a save run beside those of training, hence a group of their own.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._store.start(self._group)

    def latest(self) -> Place | None:
        """The newest `step-*` that rank 0 sees, as others may see it later; every rank calls it."""
        newest = latest_checkpoint(self._folder) if dist.get_rank() == 0 else None
        names = [newest.name if newest else None]
        dist.broadcast_object_list(names, src=0, group=self._group)
        return self._folder / names[0] if names[0] else None

    def best(self) -> Place:
        """The checkpoint of the best evaluation."""
        return self._store.best()

    def save(
        self,
        name: str,
        model: DistributedModelParallel,
        optimizer: KeyedOptimizer,
        trainer_state: dict[str, Any],
    ) -> None:
        """Copy the state now, write and publish it in the background; a save still under way is awaited."""
        self.wait()
        state = {"model": model.state_dict(), "optim": optimizer.state_dict()}
        copy = _copy_to_cpu(state, self._group)
        self._pending = self._writer.submit(self._write, copy, json.dumps(trainer_state), name)

    def check_room(self, model: DistributedModelParallel, optimizer: KeyedOptimizer) -> None:
        """Find a disk too small for one checkpoint before training; every rank calls it.

        It may take more: dense optimizers have no state yet, and older checkpoints are kept until it is written.

        Raises:
            UserError: on every rank.
        """
        shards, rest = _num_bytes({"model": model.state_dict(), "optim": optimizer.state_dict()})
        if isinstance(folder := self._folder, Path):
            total = torch.tensor(shards)
            dist.all_reduce(total, group=self._group)
            on_main(lambda: _check_room(folder, int(total) + rest), self._group)
        elif self._aside:
            aside = self._aside
            on_every_rank(lambda: _check_room(aside, shards), self._group)

    def wait(self) -> None:
        """Wait until the save under way, if any, is published on this rank.

        Raises:
            UserError: it could not be written; the checkpoints before it are as they were.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @property
    def failed(self) -> bool:
        """Whether the save under way has failed on this rank; `wait` says why."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait_if_possible(self) -> None:
        """Let the save under way become whole before an error ends the run; not for ever, as a rank may be gone."""
        if self._pending is not None:
            with suppress(Exception):
                self._pending.result(_RESCUE)

    def flush(self) -> None:
        """Finish the save under way; afterwards every rank can read it."""
        self.wait()
        dist.barrier(group=self._group)

    def close(self) -> None:
        """The same, for good."""
        self.flush()
        self._writer.shutdown()

    def _write(self, state: dict[str, Any], trainer_state: str, name: str) -> None:
        temporary = self._store.temporary(name)
        try:
            # Not `dcp.async_save`: its stagers can't copy a ShardedTensor (torch 2.13).
            dcp.save(state, checkpoint_id=temporary, process_group=self._group)
            on_main(
                lambda: (temporary / "trainer.json").write_text(trainer_state, encoding="utf-8"), self._group
            )
            write_manifest(temporary, self._group)
            # Nothing is published that would be refused.
            on_main(lambda: SafeReader(temporary).read_metadata(), self._group)
            self._store.publish(temporary, name, self._keep, self._group)
        except (OSError, CheckpointException) as error:
            raise UserError(
                f"{self._folder / name}: cannot be written ({_first_sentence(error)}); make room or repair the disk, "
                "and go on with --resume"
            ) from error
        finally:
            self._store.discard(temporary)


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


def _num_bytes(value: Any) -> tuple[int, int]:
    """Of the tensors of a state: this rank's shards of those that are sharded, and the others, which all have."""
    if isinstance(value, dict):
        parts = [_num_bytes(item) for item in value.values()]
        return sum(shards for shards, _ in parts), sum(rest for _, rest in parts)
    if isinstance(value, ShardedTensor):
        return sum(shard.tensor.nbytes for shard in value.local_shards()), 0
    return 0, value.nbytes if isinstance(value, torch.Tensor) else 0


def _check_room(folder: Path, size: int) -> None:
    disk = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists()))
    if disk.total and disk.free < size:
        raise UserError(
            f"{folder}: a checkpoint takes {human_bytes(size)} and the disk has {human_bytes(disk.free)} left; make "
            "room, or name another place in checkpoint.path"
        )


def open_checkpoints(config: RunConfig) -> Checkpoints:
    """The checkpoints of a run, to be written."""
    place = checkpoint_place(config.run_dir, config.checkpoint.path)
    return Checkpoints(place, config.checkpoint.keep, config.run_dir / CHECKPOINTS)


def latest_checkpoint(folder: Place) -> Place | None:
    """The newest `step-*` checkpoint."""
    steps: Sequence[Place] = open_store(folder).steps()
    return steps[-1] if steps else None


def verify_checkpoint(checkpoint: Place) -> None:
    """Compare every file with the manifest, each rank a share of them; every rank calls it.

    Raises:
        UserError: on every rank, if any found a file missing, truncated or altered.
    """
    found = on_every_rank(lambda: find_damage(checkpoint, dist.get_rank(), dist.get_world_size()))
    if damage := next(filter(None, found), None):
        raise _damaged(checkpoint, damage)
    if dist.get_rank() == 0 and not (checkpoint / MANIFEST).exists():
        console.print(
            f"{checkpoint}: no {MANIFEST}, as earlier versions wrote none; its files are not compared"
        )


def read_trainer_state(checkpoint: Place) -> dict[str, Any]:
    """What `trainer.json` holds; raises UserError if it can't be read."""
    try:
        state = json.loads((checkpoint / "trainer.json").read_text(encoding="utf-8"))
        if not (isinstance(state, dict) and {"progress", "ne"} <= state.keys()):
            raise ValueError("not the state of a trainer")
        return state
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(checkpoint, f"trainer.json is not readable: {error}") from error


def load_checkpoint(
    checkpoint: Place, model: DistributedModelParallel, optimizer: KeyedOptimizer | None = None
) -> None:
    """Load parameters, and with an optimizer its state too, whatever the world size and plan were.

    Raises:
        UserError: the checkpoint is damaged or of another model.
    """
    state: dict[str, Any] = {"model": model.state_dict()}
    if optimizer is not None:
        optimizer.init_state()  # creates the dense state, which would otherwise be left out in silence
        state["optim"] = optimizer.state_dict()
    _read_into(state, checkpoint)
    model.load_state_dict(state["model"])
    for tables in fused_tables(model.fused_optimizer):
        tables.reset_cache_states()  # `sharding.host_memory`: what the GPU holds of them is of before
    if optimizer is not None:
        optimizer.load_state_dict(state["optim"])


def load_whole(checkpoint: Place, model: nn.Module) -> None:
    """Load parameters into a model that this process holds whole, without a process group, and check the files.

    In place: tensors that are views stay views. Whatever the world size and plan were.

    Raises:
        UserError: the checkpoint is damaged or of another model.
    """
    if damage := find_damage(checkpoint):
        raise _damaged(checkpoint, damage)
    _read_into({"model": model.state_dict()}, checkpoint, no_dist=True)


def _read_into(state: dict[str, Any], checkpoint: Place, no_dist: bool = False) -> None:
    reader = SafeReader(checkpoint)
    try:
        dcp.load(state, storage_reader=reader, planner=SafePlanner(), no_dist=no_dist)
    except CheckpointException as error:
        if other := next((e for e, _ in error.failures.values() if isinstance(e, OtherModelError)), None):
            raise UserError(
                f"{checkpoint}: of another model ({other}); use the configuration that it was trained with or choose "
                "another run_dir=..."
            ) from error
        if refused := next((e for e, _ in error.failures.values() if isinstance(e, UserError)), None):
            raise refused from error
        raise _damaged(checkpoint, _first_sentence(reader.problem or error)) from error


def _damaged(checkpoint: Place, damage: str) -> UserError:
    before = [path for path in open_store(checkpoint.parent).steps() if path.name < checkpoint.name]
    if checkpoint.name.startswith("best"):
        return UserError(
            f"{checkpoint}: damaged ({damage}); remove it or move it away, and the next evaluation counts as the best"
        )
    remedy = (
        f"remove it or move it away to go back to {before[-1].name}"
        if before
        else "there is none before it, so remove it to start again"
    )
    return UserError(f"{checkpoint}: damaged ({damage}); {remedy}")


def _first_sentence(error: BaseException) -> str:
    """What a library says, of several ranks one; what follows may advise to unpickle the file after all."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return str(error).split("\n")[0].split(". ")[0] or type(error).__name__


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
        UserError: the checkpoint is damaged.
    """

    _KEY = re.compile(
        r"model\.tables\.(?P<owner>[^.]+)\.collections\.[^.]+\.(_embedding_module\.)?embedding(_bag)?s\.(?P=owner)__"
        r"(?P<name>[^.]+)\.weight"
    )

    def __init__(self, checkpoint: Place) -> None:
        if damage := find_damage(checkpoint):
            raise _damaged(checkpoint, damage)
        self._reader = SafeReader(checkpoint)
        try:
            metadata = self._reader.read_metadata()
        except UserError:
            raise
        except Exception as error:  # unpickling a damaged file may raise anything
            raise _damaged(checkpoint, _first_sentence(error)) from None
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
            except UserError:
                raise
            except Exception as error:  # as for the metadata
                raise _damaged(self._checkpoint, _first_sentence(error)) from None
            yield torch.cat(list(parts.values()), dim=1)


class _PartsPlanner(SafePlanner):
    """Reads into given tensors, by key."""

    def __init__(self, parts: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._parts = parts

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self._parts[index.fqn]
