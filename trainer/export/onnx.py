"""A served model as ONNX, for onnxruntime."""

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from cetnet.trainer.export.targets import check_onnx, without_remarks

_AXES = {"multi_valued": {2: "values"}, "sequences": {2: "events"}}


def to_onnx(program: ExportedProgram, path: Path) -> None:
    """Write an exported model with inputs of the same names, and one output, `probabilities`, `[outputs, batch]`.

    Of more than 1.5 GB, the weights are `<path>.data` beside it, which the file names; without that, one file.

    Raises:
        UserError: what it takes isn't installed.
    """
    check_onnx()
    with without_remarks():
        model = torch.onnx.export(program, dynamo=True, output_names=["probabilities"], verbose=False)
    assert model is not None
    axes: dict[Any, str] = {}
    for given in model.model.graph.inputs:
        for axis, size in enumerate(given.shape or ()):
            if not isinstance(size, int):
                axes[str(size)] = {0: "batch", **_AXES.get(str(given.name), {})}[axis]
    model.rename_axes(axes)
    model.save(path)
