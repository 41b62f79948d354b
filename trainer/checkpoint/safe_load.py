"""Reading what torch.distributed.checkpoint wrote, without running anything that it holds."""

import dataclasses
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader
from torch.distributed.checkpoint.metadata import (
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem

from cetnet.trainer.checkpoint.object_path import Place


class SafeReader(FileSystemReader):
    """Reads a checkpoint's metadata, a pickle, with an unpickler that knows only its own data classes.

    Attributes:
        problem: what `read_metadata` raised, of which `dcp.load` of torch 2.11 says nothing.
    """

    def __init__(self, checkpoint: Place) -> None:
        super().__init__("")
        self.fs, self.path = _Files(), cast(Any, checkpoint)
        self.problem: Exception | None = None

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Metadata of the checkpoint; raises pickle.UnpicklingError for anything that isn't metadata."""
        try:
            return self._read_metadata()
        except Exception as error:
            self.problem = error
            raise

    def _read_metadata(self) -> Metadata:
        metadata = _MetadataUnpickler(io.BytesIO((cast(Place, self.path) / ".metadata").read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("not the metadata of a checkpoint")
        for info in metadata.storage_data.values():
            if Path(info.relative_path).name != info.relative_path or info.relative_path in ("", ".."):
                raise pickle.UnpicklingError(
                    f"metadata refers to {info.relative_path!r}, outside of the checkpoint"
                )
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Files(FileSystem):
    """The files of a checkpoint, local or not."""

    def concat_path(self, path: Any, suffix: str) -> Any:
        return path / suffix

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[BinaryIO]:  # type: ignore[override]
        with path.open(mode) as stream:
            yield stream


class _MetadataUnpickler(pickle._Unpickler):  # in Python, as the one in C can't be told what BUILD may do
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

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name in self._ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"metadata refers to {module}.{name}, which no checkpoint needs")

    def load_build(self) -> None:
        """Sets the attributes of an object: here of our data classes' instances, and only their fields.

        A class whose `__module__` it sets, say, would have a module of that name imported when its instances are
        sent to another rank.
        """
        state, instance = self.stack[-1], self.stack[-2]
        if isinstance(instance, type) or not dataclasses.is_dataclass(instance):
            raise pickle.UnpicklingError(f"metadata sets attributes of {instance!r}")
        # Only the state of TensorProperties is a tuple, which its __setstate__ reads.
        if not isinstance(instance, TensorProperties):
            fields = {field.name for field in dataclasses.fields(instance)}
            if not (isinstance(state, dict) and state.keys() <= fields):
                raise pickle.UnpicklingError(f"metadata sets what {type(instance).__name__} doesn't have")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore[dict-item]


class OtherModelError(ValueError):
    """The tensors of a checkpoint are not the model's; the message names one."""


class SafePlanner(DefaultLoadPlanner):
    """Loads tensors only, and exactly those of the model (and the optimizer, if asked for), of the same sizes."""

    def create_local_plan(self) -> LoadPlan:
        """What this rank reads; raises OtherModelError for a tensor of the model that was not saved in its size."""
        assert self.metadata is not None
        saved = self.metadata.state_dict_metadata
        for key, tensor in self.state_dict.items():
            if key not in saved:
                raise OtherModelError(f"it lacks {key}")
            there = saved[key]
            if not isinstance(there, TensorStorageMetadata):
                raise pickle.UnpicklingError(f"{key} is not a tensor")
            if there.size != tensor.size():
                raise OtherModelError(f"{key} is {list(there.size)} there and {list(tensor.size())} here")
        return super().create_local_plan()

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """What all read; raises OtherModelError for a tensor of the checkpoint that no rank has."""
        assert self.metadata is not None
        read = {item.dest_index.fqn for plan in global_plan for item in plan.items}
        for key, tensor in self.metadata.state_dict_metadata.items():
            empty = isinstance(tensor, TensorStorageMetadata) and not tensor.size.numel()
            if key.split(".")[0] in self.original_state_dict and key not in read and not empty:
                raise OtherModelError(f"the model here lacks {key}")
        return super().create_global_plan(global_plan)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:  # noqa: ARG002
        """Our checkpoints hold tensors only; anything else would be unpickled."""
        raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is not a tensor")
