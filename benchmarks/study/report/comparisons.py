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
from cetnet.benchmarks.study.report.run_files import (
    Folders,
    folders_of,
    predictions,
    read_config,
    read_result,
)
from cetnet.benchmarks.study.teachers import is_student

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
        its baseline. Without those that no number of seeds would decide, since the rows alone leave more than that.
        Gains that `also` asks for count as well and, with `scaling`, those over the first method at the same size;
        then both variants are undecided.

    Raises:
        UserError: files of a run cannot be read or compared.
    """
    assert study.until
    folders = folders_of(runs)
    bases: dict[str, Baseline] = {}
    found: dict[str, float] = {}
    pairs = [
        (variant, baseline)
        for baseline, variants in study.sections.items()
        for variant in variants
        if variant != baseline
    ]
    also = [(variant, other) for variant, others in study.also.items() for other in others]
    for new, base in [*pairs, *also, *_same_size(study, folders)]:
        if base not in bases and base in folders:
            bases[base] = Baseline(predictions(folders[base], study.split), study.looks)
        of_new, of_base = folders.get(new, {}), folders.get(base, {})
        estimate = _monitored(study, of_new, of_base, bases[base]) if of_new.keys() & of_base.keys() else None
        if estimate is None or len(estimate.seeds) < FEWEST:
            half = math.inf
        else:
            half, wide = estimate.interval.half, study.until.wide_enough(estimate.point)
            if not half > wide or math.isinf(estimate.seeds_until(wide)):
                continue
        for variant in (new, base) if (new, base) not in pairs else (new,):
            found[variant] = max(half, found.get(variant, 0.0))
    return found


def _monitored(
    study: Study, new: Mapping[int, Path], base: Mapping[int, Path], baseline: Baseline
) -> Estimate | None:
    """The gain that is judged, of finished runs by seed, of which they have some in common."""
    gains = baseline.gains(predictions(new, study.split))
    assert gains
    if study.monitored == "NE":
        return gains.ne
    progressive = compare_streams(new, base, study.looks, gains.shared)
    return progressive.estimate if progressive else None


def _same_size(study: Study, folders: Folders) -> list[tuple[str, str]]:
    """With `scaling`: variants of its methods, and those of the first one with as many embedding parameters."""
    if not study.scaling:
        return []
    first = next(iter(study.scaling))
    sizes = {
        variant: read_result(next(iter(of_variant.values())))["parameters"]["tables"]
        for variant, of_variant in folders.items()
    }
    return [
        (new, base)
        for baseline, variants in study.sections.items()
        for base in variants
        for new in variants
        if study.method_of(base) == first != study.method_of(new)
        and study.method_of(new)
        and baseline not in (base, new)
        and base in sizes
        and sizes[base] == sizes.get(new)
    ]


def compare_streams(
    new: Mapping[int, Path], base: Mapping[int, Path], looks: tuple[int, ...], shared: float
) -> Progressive | None:
    """Gain of progressive NE of runs over others, of their folders by seed.

    None if they have no common records, or one of them is a student, which has no progressive NE.

    `shared`: the part of the variance of a seed's gain over rows that all seeds have, `Gains.shared`.
    """
    seeds = new.keys() & base.keys()
    configs = [read_config(folders[min(seeds)]) for folders in (new, base)] if seeds else []
    if not seeds or any(map(is_student, configs)):
        return None
    after, before = (
        {seed: stream for seed in folders if seed in seeds and (stream := read_stream(folders[seed]))}
        for folders in (new, base)
    )
    order = configs[1].get("data", {}).get("order", "shuffled")
    return progressive_gain(after, before, looks, shared if order == "shuffled" else None)


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
