"""Soft labels: what trained models say of a row, learned beside its label (Hinton et al., arXiv 1503.02531)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cetnet.models.config import Teaching


class SoftLabels(nn.Module):
    """The loss of students of one or several teachers, whose predictions are constants.

    (1 - w) BCE(label) + w T^2 BCE(q), logits of the latter divided by T, where q is the mean of the teachers'
    sigmoid(z / T): a weighted sum of one such loss for each teacher is the loss towards the weighted mean.
    `adaptive` weighs the teachers of each row by a softmax over an affine map of all their logits, as the gate of
    Zhu et al. (arXiv 2011.04106). It starts from equal weights, and learns to mix the teachers' logits into a
    prediction of the label. Learning from the student would lead it to the teacher that is the easiest to imitate.

    Args:
        config: weight w, temperature T, weighting.
        teachers: how many there are.
    """

    def __init__(self, config: Teaching, teachers: int) -> None:
        super().__init__()
        self.weight, self.temperature = config.weight, config.temperature
        self.gate = None
        if config.weighting == "adaptive":
            # Nothing is drawn for it, so that the rest of the model starts as it would without.
            self.gate = nn.utils.skip_init(nn.Linear, teachers, teachers)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(
        self, logits: Tensor, bce: Tensor, label: Tensor, teachers: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The loss of each output and row, `[outputs, B]`, and that of the gate, `[B]`, if there is one.

        Args:
            logits: `[outputs, B]` float32.
            bce: `[outputs, B]`, their cross entropy with the label.
            label: `[B]`.
            teachers: `[B, teachers]`, logits.
        """
        weights, of_gate = torch.full_like(teachers, 1 / teachers.shape[1]), None
        if self.gate is not None:
            weights = self.gate(teachers).softmax(dim=1)
            of_gate = F.binary_cross_entropy_with_logits((weights * teachers).sum(1), label, reduction="none")
        soft_label = (weights.detach() * (teachers / self.temperature).sigmoid()).sum(1)
        soft = F.binary_cross_entropy_with_logits(
            logits / self.temperature, soft_label.expand_as(logits), reduction="none"
        )
        return (1 - self.weight) * bce + self.weight * self.temperature**2 * soft, of_gate
