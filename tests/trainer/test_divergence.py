"""NE that diverges is reported while it happens: not for noise, not before the warm-up ends, not at every report."""

from cetnet.trainer.config import RunConfig
from cetnet.trainer.divergence import Divergence
from tests.trainer.test_config import MINIMAL


def reported(history: list[float], warmup_steps: int = 0, output: str = "fused") -> list[int]:
    """The steps with a warning, one report a step; the window has one step."""
    config = RunConfig.model_validate(
        MINIMAL | {"training": {"ne_window_steps": 1}, "optimizer": {"warmup_steps": warmup_steps}}
    )
    watch, steps = Divergence(config), []
    for step, ne in enumerate(history, 1):
        lines = watch.warnings(step, {f"ne/window/{output}": ne, "ne/lifetime/fused": 5.0})
        assert all(
            f"NE of {output} is {ne:.4f} at step {step}" in line and "\n" not in line for line in lines
        )
        steps += [step] * len(lines)
    return steps


def test_learning_with_noise_is_not_reported() -> None:
    assert reported([0.95, 0.9, 0.8, 0.85, 0.79, 0.9, 0.8, float("nan"), 0.8]) == []


def test_a_rise_is_reported_when_it_begins_and_as_it_goes_on() -> None:
    assert reported([0.7, 0.75, 0.86, 0.9, 1.05, 1.06, 1.2, 1.3, 9.0], output="dhen") == [3, 5, 8, 9]


def test_what_recovers_may_be_reported_again() -> None:
    assert reported([0.7, 0.9, 0.7, 0.9]) == [2, 4]


def test_no_better_than_the_base_rate_is_reported_at_once() -> None:
    assert reported([1.0, 1.1, 1.0, 0.99]) == [1]


def test_the_warm_up_is_let_pass() -> None:
    assert reported([2.0, 2.0, 0.9, 0.8], warmup_steps=2) == []
