"""Early stopping: a learning rate that falls, and a run that ends, when a validation metric no longer improves."""

import math

from cetnet.trainer.checkpoint.trainer_state import TrainState
from cetnet.trainer.config import EarlyStoppingConfig


def take_in(config: EarlyStoppingConfig, metrics: dict[str, float], state: TrainState) -> str | None:
    """Note an evaluation in the state: None if it is the best so far, otherwise what comes of it, in words.

    The metric must be a finite number: what is undefined decides nothing.
    """
    value = metrics[config.monitor]
    assert math.isfinite(value)
    falls = config.monitor.split("/")[0] in ("ne", "logloss")
    if state.best is None or (value < state.best if falls else value > state.best):
        state.best, state.bad_evaluations = value, 0
        return None
    state.bad_evaluations += 1
    state.plateau *= config.lr_factor
    state.stopped = state.bad_evaluations >= config.patience
    return f"{config.monitor} {value:.5f} is no better than {state.best:.5f}: " + (
        "stop" if state.stopped else f"learning rate x {state.plateau:g}"
    )
