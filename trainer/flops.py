"""How much a model's dense part computes for a row."""

from contextlib import ExitStack

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cetnet.models.cetnet import CETNet, Member
from cetnet.models.component import Inputs, Output
from cetnet.models.schema import Schema

_ROWS = 2


def flops_per_row(model: CETNet, schema: Schema) -> tuple[float, tuple[str, ...]]:
    """Multiplications and additions of the forward pass of components and fusion, histories at their longest.

    Of matrix products in evaluation, which is what PyTorch counts. Leaves the model and random numbers as they are.

    Returns:
        Their number, and the components that are not in it: of a model on `meta` those can't be counted that look
        at their values, as recurrent ones do. Without all of them the fusion isn't counted either.
    """
    total, uncounted, outputs = 0.0, [], []
    parameters = [*model.towers.parameters(), *model.objective.parameters()]
    fake = any(parameter.is_meta for parameter in parameters)
    training = model.training
    model.eval()  # no dropout, no auxiliary losses
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        # There is no formula for the fused attention of CPUs: count its matrix products one by one.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if fake:
            stack.enter_context(FakeTensorMode())
        for name, member in model.towers.items():
            assert isinstance(member, Member)
            shape = member.assembly.shape
            longest = max(shape.max_length, 1)
            inputs = Inputs(
                tokens=torch.zeros(_ROWS, shape.num_tokens, shape.embedding_dim),
                sequences=torch.zeros(_ROWS, shape.num_sequences, longest, shape.embedding_dim),
                lengths=torch.full((_ROWS, shape.num_sequences), longest),
                dense=torch.zeros(_ROWS, len(schema.dense_features)),
                extra=torch.zeros(_ROWS, shape.num_extra),
            )
            try:
                with FlopCounterMode(display=False) as counter:
                    outputs.append(functional_call(member.component, _copies(member.component), (inputs,)))
            except (NotImplementedError, RuntimeError):
                uncounted.append(name)
                continue
            total += counter.get_total_flops()
        if model.objective.fusion is not None and not uncounted:
            total += _of_fusion(model.objective.fusion, outputs)
    model.train(training)
    return total / _ROWS, tuple(uncounted)


def _of_fusion(fusion: nn.Module, outputs: list[Output]) -> int:
    embeddings = [output.embedding for output in outputs]
    logits = torch.stack([output.logit for output in outputs], dim=1)
    with FlopCounterMode(display=False) as counter:
        functional_call(fusion, _copies(fusion), (embeddings, logits))
    return counter.get_total_flops()


def _copies(module: nn.Module) -> dict[str, torch.Tensor]:
    """What a module holds, on the CPU, where recurrent cells are matrix products: the pass may change buffers."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: torch.zeros(value.shape, dtype=value.dtype)
        if value.is_meta
        else value.detach().to("cpu", copy=True)
        for name, value in held.items()
    }
