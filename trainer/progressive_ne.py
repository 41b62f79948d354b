"""Progressive-validation Normalized Entropy: every batch is scored before it is learned from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cetnet.trainer.metrics import binary_entropy, why_undefined


class Progress(NamedTuple):
    """How far the learning is, over all ranks.

    Attributes:
        ne: `ne/lifetime/<output>` and `ne/window/<output>`, NaN where undefined.
        sums: since the start of training: `weight` of the rows, `positive`, that of the positives, and `loss`, of
            each output the weighted cross entropy in nats. The difference of two is that of the rows in between.
    """

    ne: dict[str, float]
    sums: dict[str, Any]


class ProgressiveNE:
    """NE of several outputs over the life of the run and over a window of the last steps.

    NE is the mean cross entropy over the entropy of the base rate of the same rows (He et al. 2014). Sums
    are kept per rank in double precision, and added over the ranks only when asked for.

    Args:
        outputs: names of the outputs, in the order of the logits.
        window_steps: steps in the window.
        device: where the sums are kept.
    """

    def __init__(self, outputs: Sequence[str], window_steps: int, device: torch.device) -> None:
        self._outputs = list(outputs)
        # Columns: cross entropy of each output, weight of the negatives, weight of the positives; added up
        # apart, so that a single class gives a base rate of exactly 0 or 1.
        columns = len(self._outputs) + 2
        self._lifetime = torch.zeros(columns, dtype=torch.float64, device=device)
        self._window = torch.zeros(window_steps, columns, dtype=torch.float64, device=device)
        self._steps = 0

    def update(self, logits: Tensor, label: Tensor, weight: Tensor) -> None:
        """Add a batch: logits `[outputs, B]`, label `[B]`, weight `[B]`."""
        logits, label, weight = logits.double(), label.double(), weight.double()
        loss = F.binary_cross_entropy_with_logits(logits, label.expand_as(logits), reduction="none")
        sums = torch.cat([loss @ weight, (weight @ (1 - label))[None], (weight @ label)[None]])
        self._lifetime += sums
        self._window[self._steps % len(self._window)] = sums
        self._steps += 1

    def compute(self) -> Progress:
        """NE and sums over all ranks; a collective."""
        both = torch.stack([self._lifetime, self._window.sum(0)])
        dist.all_reduce(both)
        result = {}
        for kind, (*losses, negative, positive) in zip(("lifetime", "window"), both.tolist(), strict=True):
            weight = negative + positive
            entropy = binary_entropy(positive / weight) if weight else 0.0
            for output, loss in zip(self._outputs, losses, strict=True):
                result[f"ne/{kind}/{output}"] = loss / weight / entropy if entropy else float("nan")
        *losses, negative, positive = both[0].tolist()
        sums = {
            "weight": negative + positive,
            "positive": positive,
            "loss": dict(zip(self._outputs, losses, strict=True)),
        }
        return Progress(result, sums)

    def why_undefined(self) -> str | None:
        """Why the lifetime's NE doesn't exist, in words; None if it does. A collective."""
        classes = self._lifetime[-2:].clone()
        dist.all_reduce(classes)
        return why_undefined(*classes.tolist())

    def state_dict(self) -> dict[str, Any]:
        """Sums over all ranks, so that they can be loaded on another world size; a collective."""
        lifetime, window = self._lifetime.clone(), self._window.clone()
        dist.all_reduce(lifetime)
        dist.all_reduce(window)
        return {"lifetime": lifetime.tolist(), "window": window.tolist(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from these sums: rank 0 holds them, the other ranks start from zero."""
        share = float(dist.get_rank() == 0)
        self._window.copy_(torch.tensor(state["window"], dtype=torch.float64) * share)
        self._lifetime.copy_(torch.tensor(state["lifetime"], dtype=torch.float64) * share)
        self._steps = state["steps"]
