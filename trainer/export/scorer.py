"""Scoring with an exported model, in this process, by any of its forms; without TorchRec."""

import json
import threading
from collections.abc import Callable, Mapping
from hashlib import file_digest
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cetnet.trainer.encoder.encode import Encoder
from cetnet.trainer.errors import UserError
from cetnet.trainer.export.program_file import check_program
from cetnet.trainer.export.targets import FILES, Target

_FASTEST_FIRST: tuple[Target, ...] = ("aoti", "pt2", "onnx")

_Run = Callable[[dict[str, NDArray]], NDArray]


class Scorer:
    """An export folder's model, loaded: raw rows, or encoded ones, to probabilities.

    Several may live in a process, and several threads may use one. Nothing of the folder is run but the model: its
    `encoder/` is this package's own, and the graph of `model.pt2` is checked before torch loads it. `model.aoti.pt2`,
    however, is native code.

    Args:
        folder: what `cetnet export` wrote.
        target: the form of the model; None: the first of aoti, pt2 and onnx that the folder has.

    Attributes:
        target: the form that was loaded.
        encoder: makes the model's inputs of raw rows.
        outputs: names of the model's outputs, in their order; the first is its answer.

    Raises:
        UserError: the folder is no export, or a file of it is missing or damaged.
    """

    def __init__(self, folder: Path, target: Target | None = None) -> None:
        check_export(folder)
        there = [name for name in _FASTEST_FIRST if (folder / FILES[name]).exists()]
        if not there or target not in (None, *there):
            wanted = FILES[target] if target else "model.pt2"
            raise UserError(
                f"{folder}: no {wanted} here; export the run again, with --target {target or 'pt2'}"
            )
        self.target: Target = target or there[0]
        try:
            self.encoder = Encoder(folder)
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
        self.outputs = self.encoder.outputs
        self._inputs: dict[str, dict] = {each["name"]: each for each in self.encoder.request["inputs"]}
        path = folder / FILES[self.target]
        try:
            self._run = _LOADERS[self.target](path)
        except UserError:
            raise
        except Exception as error:  # of torch or onnxruntime, of another version than the one that wrote it
            raise UserError(f"{path}: cannot be loaded with the versions here ({error})") from error

    def score(self, rows: pa.Table) -> dict[str, NDArray[np.float32]]:
        """The probabilities of raw rows, by output; ValueError as of `Encoder.encode`."""
        if not rows.num_rows:
            return dict.fromkeys(self.outputs, np.empty(0, np.float32))
        return dict(zip(self.outputs, self.run(self.encoder.encode(rows)), strict=True))

    def run(self, inputs: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """The probabilities of at least one encoded row, `[outputs, rows]`.

        Raises:
            ValueError: an array is missing, or has another type or size than `request.json` says. Compiled code,
                which would read foreign memory then, never sees it.
        """
        return self._run(self._checked(inputs))

    def _checked(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        if set(inputs) != set(self._inputs):
            raise ValueError(f"inputs {sorted(inputs)}, but the model takes {sorted(self._inputs)}")
        rows = next(iter(inputs.values())).shape[:1]
        for name, described in self._inputs.items():
            array, sizes = inputs[name], described["shape"]
            fits = array.ndim == len(sizes) and array.shape[:1] == rows and all(array.shape)
            fits = fits and all(
                isinstance(size, str) or size == n for size, n in zip(sizes, array.shape, strict=True)
            )
            if not fits or array.dtype != described["dtype"]:
                raise ValueError(
                    f"input {name!r} is {array.dtype} {list(array.shape)}, but the model takes {described['dtype']} "
                    f"{sizes}, of as many rows as the others and at least one"
                )
        return {name: np.ascontiguousarray(inputs[name]) for name in self._inputs}


def check_export(folder: Path) -> None:
    """Raise UserError if a folder is none that `cetnet export` wrote, or a file in it isn't as it was written."""
    about = folder / "about.json"
    try:
        digests = json.loads(about.read_text(encoding="utf-8"))["sha256"]
        for name, digest in digests.items():
            path = folder / name
            with path.open("rb") as file:
                if file_digest(file, "sha256").hexdigest() != digest:
                    raise UserError(f"{path}: not as it was exported; export the run again")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no export, {error.filename} is missing; make one with `cetnet export`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{about}: cannot be read as that of an export ({error})") from error


def _load_pt2(path: Path) -> _Run:
    check_program(path)
    module = torch.export.load(str(path)).module()

    def run(inputs: dict[str, NDArray]) -> NDArray:
        with torch.inference_mode():
            return module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()

    return run


def _load_aoti(path: Path) -> _Run:
    from cetnet.trainer.export.aoti import load_aoti  # not of everyone who has torch

    model, one_at_a_time = load_aoti(path), threading.Lock()

    def run(inputs: dict[str, NDArray]) -> NDArray:
        with one_at_a_time, torch.inference_mode():
            return model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()

    return run


def _load_onnx(path: Path) -> _Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{path} needs onnxruntime; install cetnet's extra [onnx]") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # it would take all cores, and spin on them
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, NDArray]) -> NDArray:
        return session.run(None, inputs)[0]

    return run


_LOADERS: dict[Target, Callable[[Path], _Run]] = {"aoti": _load_aoti, "pt2": _load_pt2, "onnx": _load_onnx}
