"""Gains of progressive NE against sums row by row, and what their intervals cover."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cetnet.benchmarks.study.report.progressive import (
    FEWEST_BLOCKS,
    Stream,
    progressive_gain,
    progressive_ne,
    read_stream,
)
from cetnet.trainer.errors import UserError


def stream(loss: np.ndarray, label: np.ndarray, every: int) -> Stream:
    """Cumulative sums of rows of weight 1 at every so many rows."""
    at = np.arange(every, len(loss) + 1, every)
    return Stream(at.astype(float), at.astype(float), label.cumsum()[at - 1], loss.cumsum()[at - 1])


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def test_ne_and_gain_are_those_of_the_rows_after_the_first_tenth() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(10_000) < 0.2).astype(float)
    before, after = rng.gamma(2, 0.25, (2, 10_000))
    base, new = stream(before, label, 100), stream(after, label, 100)
    kept = slice(1000, None)
    assert progressive_ne(base) == pytest.approx(before[kept].mean() / entropy(label[kept].mean()))
    gain = progressive_gain({1: new}, {1: base}, ())
    assert gain
    assert gain.first == 1000
    assert gain.estimate.point == pytest.approx(100 * (after[kept].sum() / before[kept].sum() - 1))
    assert gain.blocks * gain.block_rows == pytest.approx(9000, rel=0.02)


def test_streams_that_log_at_other_rows_are_compared_where_both_do() -> None:
    rng = np.random.default_rng(1)
    label = (rng.random(12_000) < 0.2).astype(float)
    before, after = rng.gamma(2, 0.25, (2, 12_000))
    gain = progressive_gain({1: stream(after, label, 150)}, {1: stream(before, label, 100)}, ())
    assert gain
    assert gain.first == 1200
    assert gain.estimate.point == pytest.approx(100 * (after[1200:].sum() / before[1200:].sum() - 1))
    assert progressive_gain({1: stream(after, label, 150)}, {2: stream(before, label, 150)}, ()) is None
    nothing = Stream(*np.zeros((4, 0)))
    assert progressive_gain({1: nothing}, {1: nothing}, ()) is None
    assert math.isnan(progressive_ne(nothing))
    single_class = stream(before, np.ones(12_000), 150)
    assert progressive_gain({1: single_class}, {1: single_class}, ()) is None


def differences(rng: np.random.Generator, seeds: int, memory: float) -> np.ndarray:
    """What a new model's loss is more than the baseline's, `[seeds, 200]`, 0 in the long run: a part that all seeds
    have in common, each value of which remembers the last one, and one of each seed."""
    common = rng.normal(size=220)
    for step in range(1, 220):
        common[step] += memory * common[step - 1]
    return common[20:] + 0.5 * rng.normal(size=(seeds, 200)) + 0.05 * rng.normal(size=(seeds, 1))


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_intervals_over_blocks_and_seeds_hold_the_truth(memory: float) -> None:
    rng = np.random.default_rng(2)
    label, held = np.tile([1.0, 0.0, 0.0], 67)[:200], 0
    trials = 400
    for _ in range(trials):
        # The first tenth is left out, but for the sums before it.
        losses = np.full((5, 200), 100.0), 100.0 + differences(rng, 5, memory)
        before, after = ({s: stream(of[s], label, 1) for s in range(5)} for of in losses)
        gain = progressive_gain(after, before, ())
        assert gain
        held += gain.estimate.interval.low <= 0 <= gain.estimate.interval.high
    assert 0.91 <= held / trials <= 0.99


def test_blocks_grow_while_they_correlate_and_a_line_is_no_chance() -> None:
    rng = np.random.default_rng(3)
    label = np.tile([1.0, 0.0, 0.0, 0.0], 100)

    def blocks(difference: np.ndarray) -> tuple[int, float]:
        before = np.full(400, 100.0)
        found = progressive_gain(
            {1: stream(before + difference, label, 1)}, {1: stream(before, label, 1)}, ()
        )
        assert found
        return found.blocks, found.estimate.data

    noise = rng.normal(size=400)
    independent, width = blocks(noise)
    assert independent == 360
    walk = np.convolve(rng.normal(size=430), np.ones(30), "valid")[:400]
    assert FEWEST_BLOCKS <= blocks(walk)[0] < 90
    steady, with_line = blocks(noise + np.linspace(50, -50, 400))
    assert steady == 360
    assert with_line == pytest.approx(width, rel=0.1)


def test_seeds_of_their_own_order_share_only_a_part_of_their_blocks() -> None:
    rng = np.random.default_rng(4)
    label = np.tile([1.0, 0.0, 0.0], 34)[:100]
    losses = np.full((4, 100), 100.0), 100.0 + rng.normal(size=(4, 100))
    before, after = ({s: stream(of[s], label, 1) for s in range(4)} for of in losses)
    whole, part = (progressive_gain(after, before, (), shared) for shared in (1.0, 0.25))
    assert whole
    assert part
    assert part.estimate.data == pytest.approx(whole.estimate.data / 2)
    # Blocks that have nothing in common leave nothing that is common.
    alike = progressive_gain(after, before, ())
    assert alike
    assert alike.estimate.data < 0.5 * whole.estimate.data


def test_only_the_first_epoch_and_the_last_record_of_a_step_count(tmp_path: Path) -> None:
    def record(rows: int, loss: float, epoch: int = 1) -> dict:
        sums = {"weight": float(rows), "positive": rows / 4, "loss": {"fused": loss, "dhen": 1.0}}
        return {"kind": "train", "rows": rows, "epoch": epoch, "progressive": sums}

    lines = [record(10, 5.0), record(20, 99.0), record(20, 9.0), {"kind": "eval", "ne/fused": 0.9}]
    lines += [{"kind": "train", "rows": 30}, record(40, 15.0, 2)]
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = read_stream(tmp_path)
    assert found
    assert (found.rows.tolist(), found.loss.tolist()) == ([10, 20], [5, 9])
    log.write_text('{"kind": "train", "rows": 30}', encoding="utf-8")
    assert read_stream(tmp_path) is None
    log.write_text(json.dumps(record(10, 5.0) | {"progressive": 3}), encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read"):
        read_stream(tmp_path)
