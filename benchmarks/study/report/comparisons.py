"""Which comparisons of a study are decided."""

import math
from collections.abc import Sequence

from cetnet.benchmarks.study.definition import Run, Study
from cetnet.benchmarks.study.report.bootstrap import Baseline
from cetnet.benchmarks.study.report.rows import predictions


def undecided(study: Study, runs: Sequence[Run]) -> dict[str, float]:
    """The variants whose gain over their baseline is not known as exactly as `study.until` asks.

    Returns:
        By variant, half of its gain's interval, in percent of NE; infinite if it shares no two seeds with its
        baseline, or its gain is undefined.

    Raises:
        UserError: files of a run cannot be read or compared.
    """
    assert study.until
    found = {}
    folders = {
        variant: {run.seed: run.folder for run in runs if run.variant == variant and run.finished}
        for variant in study.variants
    }
    for baseline, variants in study.sections.items():
        base = Baseline(predictions(folders[baseline], study.split)) if folders[baseline] else None
        for variant in variants:
            if variant == baseline:
                continue
            half = math.inf
            if base and len(folders[variant].keys() & folders[baseline].keys()) > 1:
                gains = base.gains(predictions(folders[variant], study.split))
                assert gains
                half = (gains.ne.high - gains.ne.low) / 2
            if not half <= study.until.half_width:
                found[variant] = half if math.isfinite(half) else math.inf
    return found
