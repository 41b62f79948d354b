"""What the gains of a study's variants over their baselines say, and which are decided."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cetnet.benchmarks.study.definition import Run, Study, Until
from cetnet.benchmarks.study.report.bootstrap import Baseline
from cetnet.benchmarks.study.report.intervals import FEWEST, LEVEL, Estimate, Gain, holm
from cetnet.benchmarks.study.report.progressive import Progressive, progressive_gain, read_stream
from cetnet.benchmarks.study.report.run_files import folders_of, predictions, read_config

EFFECT = 0.05
"""A gain, in percent of NE, that people act on."""


class Comparison(NamedTuple):
    """What a variant's gain says.

    Attributes:
        estimate: the gain that is judged; None of a model compared with itself.
        verdict: in words.
        p: the level at which the variant would just be told from its baseline, by Holm's method over the variants
            that are compared with the same baseline; NaN with too few seeds.
    """

    estimate: Estimate | None
    verdict: str
    p: float


class Pairing(NamedTuple):
    """What came of training a variant and its baseline with the same seeds.

    Attributes:
        correlation: of their cross entropies over the seeds.
        saved: the share by which the variance of the difference is smaller than of unrelated runs; negative: larger.
    """

    correlation: float
    saved: float


def undecided(study: Study, runs: Sequence[Run]) -> dict[str, float]:
    """The variants whose gain over their baseline is not known as exactly as `study.until` asks, but might be.

    Returns:
        By variant, half of its gain's interval, in percent of NE; infinite if it shares fewer than three seeds with
        its baseline. Without those that no number of seeds would decide, as the rows are too few: of a gain of NE
        the evaluated ones.

    Raises:
        UserError: files of a run cannot be read or compared.
    """
    assert study.until
    folders, found = folders_of(runs), {}
    for baseline, variants in study.sections.items():
        of_baseline = folders.get(baseline, {})
        base = Baseline(predictions(of_baseline, study.split), study.looks) if of_baseline else None
        for variant in variants:
            if variant == baseline:
                continue
            estimate = None
            if study.until.monitor == "progressive":
                progressive = compare_streams(folders.get(variant, {}), of_baseline, study.looks)
                estimate = progressive and progressive.estimate
            elif base and (gains := base.gains(predictions(folders.get(variant, {}), study.split))):
                estimate = gains.ne
            if estimate is None or len(estimate.seeds) < FEWEST:
                found[variant] = math.inf
                continue
            half, wide = estimate.interval.half, study.until.wide_enough(estimate.point)
            if half > wide and math.isfinite(estimate.seeds_until(wide)):
                found[variant] = half
    return found


def compare_streams(
    new: Mapping[int, Path], base: Mapping[int, Path], looks: tuple[int, ...]
) -> Progressive | None:
    """Gain of progressive NE of runs over others, of their folders by seed; None if they have no common records."""
    seeds = new.keys() & base.keys()
    if not seeds:
        return None
    after, before = (
        {seed: stream for seed in folders if seed in seeds and (stream := read_stream(folders[seed]))}
        for folders in (new, base)
    )
    order = read_config(base[min(seeds)]).get("data", {}).get("order", "shuffled")
    return progressive_gain(after, before, looks, shuffled=order == "shuffled")


def pairing(losses: Mapping[int, float], base: Mapping[int, float]) -> Pairing | None:
    """What pairing seeds brought, of losses by seed; None with fewer than three pairs, or without spread."""
    seeds = [seed for seed in losses if seed in base]
    both = np.array([[of[seed] for seed in seeds] for of in (losses, base)])
    if len(seeds) < FEWEST or not both.std(axis=1).all():
        return None
    apart = both.var(axis=1, ddof=1).sum()
    return Pairing(float(np.corrcoef(both)[0, 1]), 1 - float((both[0] - both[1]).var(ddof=1) / apart))


def compare(estimates: Mapping[str, Estimate], until: Until | None) -> dict[str, Comparison]:
    """Verdicts on the gains of the variants that are compared with one baseline, in percent of NE."""
    p = holm({variant: estimate.p for variant, estimate in estimates.items()})
    return {
        variant: Comparison(estimate, _verdict(estimate, p[variant], until or Until()), p[variant])
        for variant, estimate in estimates.items()
    }


def same(gain: Gain) -> str:
    """The verdict on a model compared with itself."""
    return "called different" if gain.excludes_zero else "not told apart"


def _verdict(estimate: Estimate, p: float, until: Until) -> str:
    gain = estimate.interval
    if math.isnan(gain.point):
        return ""
    if (missing := FEWEST - len(estimate.seeds)) > 0:
        return f"undecided: at least {_more(missing)}"
    if gain.excludes_zero:
        found = "better" if gain.point < 0 else "worse"
        return found if p <= LEVEL else f"perhaps {found}: one of many"
    if gain.half <= until.half_width:
        return f"equal within ±{_up(max(-gain.low, gain.high))} %"
    needed = estimate.seeds_until(until.half_width)
    if math.isinf(needed):
        return f"undecided: the rows alone leave ±{_up(estimate.data)} %"
    return f"undecided: {_more(max(round(needed) - len(estimate.seeds), 1))}"


def _more(seeds: int) -> str:
    return f"{seeds} more seed{'s' * (seeds > 1)}"


def _up(percent: float) -> str:
    """Two digits, never fewer than it is."""
    digits = 1 - math.floor(math.log10(percent)) if percent else 2
    return f"{math.ceil(percent * 10**digits - 1e-9) / 10**digits:g}"
