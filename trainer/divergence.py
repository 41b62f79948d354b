"""NE that diverges is reported while it happens."""

import math

from cetnet.trainer.config import RunConfig
from cetnet.trainer.nonfinite import REMEDY

_RISE = 1.2
"""So far above its best, or above what was reported last, NE is worth a line."""


class Divergence:
    """Watches the windowed NE of every output from the end of the warm-up on."""

    def __init__(self, config: RunConfig) -> None:
        # By then the window holds no step of the warm-up.
        self._warm = config.optimizer.warmup_steps + config.training.ne_window_steps
        self._best: dict[str, float] = {}
        self._reported: dict[str, float] = {}

    def warnings(self, step: int, values: dict[str, float]) -> list[str]:
        """A line for each output whose NE reached 1 or rose 20% above its best; another with each further 20%.

        `values`: among others `ne/window/<output>`, NaN where the window holds a single class.
        """
        lines = []
        for key, ne in values.items():
            if step < self._warm or not key.startswith("ne/window/") or math.isnan(ne):
                continue
            best = self._best[key] = min(ne, self._best.get(key, ne))
            limit = _RISE * self._reported[key] if key in self._reported else min(1.0, _RISE * best)
            if ne >= limit:
                self._reported[key] = ne
                why = "no better than predicting the base rate" if ne >= 1 else "it diverges"
                lines.append(
                    f"WARNING: NE of {key.removeprefix('ne/window/')} is {ne:.4f} at step {step}, its best was "
                    f"{best:.4f}: {why}. {REMEDY}."
                )
            elif ne < min(1.0, _RISE * best):
                self._reported.pop(key, None)
        return lines
