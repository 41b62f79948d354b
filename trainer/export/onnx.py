"""A served model as ONNX, for onnxruntime."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from cetnet.trainer.export.targets import check_onnx

_AXES = {"multi_valued": {2: "values"}, "sequences": {2: "events"}}


def to_onnx(program: ExportedProgram, path: Path) -> None:
    """Write an exported model with inputs of the same names, and one output, `probabilities`, `[outputs, batch]`.

    Of more than 1.5 GB, the weights are `<path>.data` beside it, which the file names; without that, one file.

    Raises:
        UserError: what it takes isn't installed.
    """
    check_onnx()
    with _quiet():
        model = torch.onnx.export(program, dynamo=True, output_names=["probabilities"], verbose=False)
    assert model is not None
    axes: dict[Any, str] = {}
    for given in model.model.graph.inputs:
        for axis, size in enumerate(given.shape or ()):
            if not isinstance(size, int):
                axes[str(size)] = {0: "batch", **_AXES.get(str(given.name), {})}[axis]
    model.rename_axes(axes)
    model.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks: on libraries that it would know too, and of torch on torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
