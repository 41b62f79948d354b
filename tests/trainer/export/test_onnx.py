"""ONNX of an exported model computes what the module does, in onnxruntime."""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from cetnet.trainer.errors import UserError
from cetnet.trainer.export.onnx import to_onnx
from tests.trainer.export.stand_in import SIZES, Toy, inputs, program


def check(path: Path, module: nn.Module) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in SIZES:
        for empty in (False, True):
            given = inputs(*size, empty=empty)
            (found,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
            np.testing.assert_allclose(found, module(**given).detach().numpy(), rtol=0, atol=1e-6)


def test_same_probabilities(tmp_path: Path) -> None:
    toy = Toy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(program(toy), tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    check(tmp_path / "model.onnx", toy)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert {given.name: given.shape for given in session.get_inputs()} == {
        "dense": ["batch", 2],
        "categorical": ["batch", 1],
        "multi_valued": ["batch", 1, "values"],
        "sequences": ["batch", 2, "events"],
    }
    assert [(given.name, given.shape) for given in session.get_outputs()] == [("probabilities", [2, "batch"])]


def test_weights_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As of a model beyond the 2 GB that a file of the format may have; found wherever both are moved together.
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1)
    toy, made, moved = Toy(), tmp_path / "made", tmp_path / "moved"
    made.mkdir()
    to_onnx(program(toy), made / "model.onnx")
    made.rename(moved)
    assert {file.name for file in moved.iterdir()} == {"model.onnx", "model.onnx.data"}
    check(moved / "model.onnx", toy)


def test_int8_tables(tmp_path: Path) -> None:
    class Int8(Toy):
        def __init__(self) -> None:
            super().__init__()
            scale = self.table.weight.detach().abs().amax(1, keepdim=True) / 127
            self.int8 = nn.Parameter((self.table.weight / scale).round().to(torch.int8), requires_grad=False)
            self.scale = nn.Parameter(scale.half(), requires_grad=False)
            del self.table

        def rows(self, ids: torch.Tensor) -> torch.Tensor:
            index = torch.where((ids >= 0) & (ids < self.int8.shape[0]), ids, 0)
            return nn.functional.embedding(index, self.int8).float() * nn.functional.embedding(
                index, self.scale
            )

    to_onnx(program(Int8()), tmp_path / "model.onnx")
    check(tmp_path / "model.onnx", Int8())


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"the target onnx needs onnxscript: install cetnet's extra \[onnx\]"):
        to_onnx(program(Toy()), tmp_path / "model.onnx")
