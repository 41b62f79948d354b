"""The learning rate of every optimizer, scaled together."""

import math

from torchrec.optim.keyed import KeyedOptimizer

from cetnet.trainer.config import OptimizerConfig


class LearningRate:
    """Scales the learning rates of all parameter groups, fused tables included.

    Attributes:
        plateau: further factor, lowered when the validation metric stops improving.
        scale: the factor now in force.
    """

    def __init__(self, optimizer: KeyedOptimizer, config: OptimizerConfig, total_steps: int) -> None:
        self._optimizer, self._config, self._total_steps = optimizer, config, total_steps
        self._base = [group["lr"] for group in optimizer.param_groups]
        self.plateau = self.scale = 1.0

    def set(self, step: int) -> None:
        """Set the learning rate of a step, counted from 0."""
        self.scale = self.plateau * schedule(self._config, step, self._total_steps)
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * self.scale


def schedule(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Factor of the learning rate: linear warm-up to 1, then none, linear or cosine decay to `final_lr`, in the last
    `decay_share` of the steps."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    start = max(config.warmup_steps, min(round(total_steps * (1 - config.decay_share)), total_steps - 2))
    if config.decay == "none" or step < start:
        return 1.0
    progress = min((step - start) / max(total_steps - 1 - start, 1), 1.0)  # past the last step, too
    remaining = 1 - progress if config.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.final_lr + (1 - config.final_lr) * remaining
