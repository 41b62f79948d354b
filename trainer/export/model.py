"""From a run to a model in plain PyTorch, and from that to a program that needs torch alone."""

import copy
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from cetnet.models.cetnet import CETNet
from cetnet.models.schema import Schema
from cetnet.models.served import Served, input_features
from cetnet.trainer.checkpoint.checkpoints import load_whole
from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import UserError
from cetnet.trainer.session import build_model


class Loaded(NamedTuple):
    """A trained model, as it was trained and as it is served; both have the same memory."""

    model: CETNet
    served: Served


def load_model(config: RunConfig, schema: Schema, checkpoint: Place) -> Loaded:
    """The model of a checkpoint, whole, on the CPU and in float32, without a process group.

    Tables that were trained in float16 are exact in it.

    Raises:
        UserError: the model can't be served, or the checkpoint is damaged or of another model.
    """
    training = config.training.model_copy(update={"precision": "fp32", "table_precision": "fp32"})
    model = build_model(config.model_copy(update={"training": training}), schema, "cpu")
    try:
        served = Served(model, schema)
    except ValueError as error:
        raise UserError(str(error)) from error
    load_whole(checkpoint, model)
    return Loaded(model.eval(), served)


def sample_inputs(schema: Schema, batch: int = 2, length: int = 2) -> dict[str, Tensor]:
    """Inputs of `Served` of some size, as an export is traced with; ids 0."""
    inputs: dict[str, Tensor] = {}
    for name, features in input_features(schema).items():
        if name == "dense":
            inputs[name] = torch.zeros(batch, len(features))
        else:
            size = (batch, len(features)) if name == "categorical" else (batch, len(features), length)
            inputs[name] = torch.zeros(size, dtype=torch.int64)
    return inputs


def export_program(served: Served, schema: Schema) -> ExportedProgram:
    """The served model as a program of torch.export, for any number of rows from 1 and lists of any length from 1.

    Raises:
        UserError: a component can't be exported; it is named.
    """
    try:
        return _traced(served, schema)
    except Exception as error:  # of whatever kind: torch's, or of a component's own code
        for name, member in served.members.items():
            try:
                _traced(_alone(served, name), schema)
            except Exception as of_component:
                kind = type(member.component).__qualname__
                raise UserError(
                    f"component {name!r} ({kind}) can't be exported: {_reason(of_component)}"
                ) from error
        raise


def _traced(served: Served, schema: Schema) -> ExportedProgram:
    batch, values = Dim("batch", min=1), Dim("values", min=1)
    longest = max((feature.max_length or 0 for feature in schema.of_kind("sequence")), default=0)
    events = Dim("events", min=1, max=longest) if longest > 1 else None
    shapes: Mapping[str, Any] = {
        "dense": {0: batch},
        "categorical": {0: batch},
        "multi_valued": {0: batch, 2: values},
        "sequences": {0: batch} | ({2: events} if events else {}),
    }
    inputs = sample_inputs(schema)
    if "sequences" in inputs and events is None:
        inputs["sequences"] = inputs["sequences"][:, :, :1].contiguous()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # What is true of two rows alone isn't assumed: else a batch of one would be refused.
        with fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            program = torch.export.export(
                served, (), inputs, dynamic_shapes={name: shapes[name] for name in inputs}, strict=False
            )
    # Loops are traced by another part of torch, which doesn't know of that.
    program._guards_code = [guard for guard in program._guards_code if not guard.endswith(".size()[0] >= 2")]
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # names this machine's folders
    return program


def _alone(served: Served, name: str) -> Served:
    """The same with one component, and without fusion."""
    alone = copy.copy(served)
    alone._modules = {
        **served._modules,
        "members": nn.ModuleDict({name: served.members[name]}),
        "fusion": None,
    }
    return alone


def _reason(error: Exception) -> str:
    """The first that torch says, which is a page, and where in the component's code, if it knows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2]) or type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "forward"]
    own = [frame for frame in frames if "/torch/" not in frame.filename]
    return f"{said} (in {Path(own[-1].filename).name}, line {own[-1].lineno})" if own else said
