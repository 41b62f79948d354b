"""What a report's tables mean, in words."""

import math
from collections.abc import Sequence

from cetnet.benchmarks.study.definition import Study, Until
from cetnet.benchmarks.study.report.comparisons import EFFECT
from cetnet.benchmarks.study.report.document import Section, Text
from cetnet.benchmarks.study.report.intervals import FEWEST, LEVEL, nominal_level
from cetnet.benchmarks.study.report.progressive import LEFT_OUT
from cetnet.benchmarks.study.report.rows import BAYES, Row
from cetnet.benchmarks.study.report.tables import most_paired


def has_gains(row: Row) -> bool:
    """Whether the row has a gain that is defined."""
    known = [estimate.point for estimate in row.estimates.values()]
    return any(map(math.isfinite, [*known, row.against_itself.point if row.against_itself else math.nan]))


def how_to_read(study: Study, rows: Sequence[Row], bayes: Row | None, missing: str | None) -> Section:
    """What the tables of metrics and gains mean."""
    seeds = {row.seeds for row in rows if row.seeds}
    several = max(seeds) > 1
    counted = (
        f"{max(seeds)} seeds" if len(seeds) == 1 else "the seeds, of which column `seeds` has the number"
    )
    sentences = [f"Metrics are the mean ± standard deviation of {counted}." if several else "One seed."]
    if missing:
        sentences.append(f"Split {study.split} has {missing}; nor are there gains in these.")
    if any(map(has_gains, rows)):
        sentences += [*_gains(study, rows), *_seeds(rows)]
    if any(row.progressive for row in rows):
        sentences.append(_progressive(rows))
    if any(max(row.metrics.get("NE") or [0]) > 1 for row in rows):
        sentences.append("NE above 1 is worse than to predict the base rate everywhere.")
    if study.paper:
        sentences.append(
            f"Columns `paper`: {study.paper.source}. Levels depend on data and protocol, so compare the gains."
        )
    if any(row.component for row in rows):
        sentences.append("Indented rows are an ensemble's components on their own.")
    if bayes:
        of_rows = ""
        if bayes.rows and bayes.rows[0] < bayes.rows[1]:
            of_rows = (
                f", of the {bayes.rows[0]:,} of {bayes.rows[1]:,} rows where they are known: another level"
            )
        sentences.append(f"{BAYES}: the probabilities that the synthetic labels were drawn from{of_rows}.")
    if several:
        sentences.append(
            "In plots along training, lines are means over the seeds, bands reach from the lowest to the highest."
        )
    sentences.append(
        "Multiply-adds are those of the matrix products of a row's forward pass through the dense part, histories "
        "at their longest; seconds a million rows are of training, all processes together."
    )
    return Section("How to read it", [Text("\n".join(sentences))])


def _gains(study: Study, rows: Sequence[Row]) -> list[str]:
    baselines = list(study.sections)
    against = f"`{baselines[0]}`"
    if len(baselines) > 1:
        against = f"each section's baseline ({', '.join(f'`{baseline}`' for baseline in baselines)})"
    sentences = [
        f"Gains are over {against}: of NE in percent of the baseline's, negative is better; of AUC and gAUC in",
        "percentage points, positive is better. In brackets the 95 % interval:",
        "it covers the choice of the evaluation data (a paired bootstrap over groups, or rows, where there are none)"
        + (
            " and the spread between seeds (Student's t)."
            if most_paired(rows) > 1
            else ", not the spread between seeds."
        ),
        "Bold: the interval is without 0; of many gains, some are so by chance.",
    ]
    if study.looks:
        level = nominal_level(study.looks, LEVEL)
        sentences.append(
            f"Seeds are added until it is narrow enough, so each look, at {', '.join(map(str, study.looks))} seeds, "
            f"is taken at a level of {100 * level:.2g} %: all looks together miss in 5 % of all studies (repeated "
            "confidence intervals, Jennison and Turnbull)."
        )
    if any(row.comparison for row in rows):
        margin = (study.until or Until()).half_width
        sentences.append(
            f"The verdict is on the gain of {study.monitored}: *better* and *worse* by Holm's method over a "
            "section's variants, so that with 95 % probability none of them is wrong; *perhaps*: by its own interval "
            f"only; *equal within*: the farther end of an interval of no more than ±{margin:g} %; *undecided*: the "
            "seeds that an interval as narrow is likely to take."
        )
    if any(row.comparison and row.seeds and row.seeds > 3 for row in rows):
        sentences.append(
            "*A/A* compares every second seed of the baseline with its other seeds: nothing with nothing."
        )
    return sentences


def _seeds(rows: Sequence[Row]) -> list[str]:
    paired = {row.paired_seeds for row in rows if row.estimates}
    sentences = []
    if any((number or 0) < FEWEST for number in paired):
        sentences.append(
            f"Fewer than {FEWEST} seeds conclude nothing, and their gains are never bold: of one the spread between "
            "seeds is not in the interval, of two Student's t has one degree of freedom."
        )
    if len({row.seeds for row in rows if row.seeds}) > 1:
        sentences.append(
            "Gains are over the seeds that both the variant and the baseline have; means over different seeds are "
            "not to be compared with each other."
        )
    return sentences


def _progressive(rows: Sequence[Row]) -> str:
    found = [row.progressive for row in rows if row.progressive]
    blocks = sorted({each.blocks for each in found})
    text = (
        "Progressive NE scores every batch of the first epoch before it is learned from, in training mode (dropout, "
        f"each batch's own normalisation), after the first {100 * LEFT_OUT:.0f} % of the examples. "
    )
    if blocks == [0]:
        return f"{text}The stream has too few records for blocks, so its interval covers the seeds alone."
    lengths = sorted({each.block_rows for each in found if each.blocks})
    size = f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"
    text += (
        f"Its interval covers the seeds and which rows came: by blocks of {size} examples, as long as it takes for "
        "neighbours not to correlate."
    )
    if any(each.correlated for each in found):
        text += " Of some variants they still do, but longer ones would be too few: those may be too narrow."
    return text


def sureness(study: Study) -> str:
    """What the columns of `sureness_columns` mean."""
    return (
        f"All but the last two columns are of {study.monitored}. *p (Holm)*: the level at which the verdict turns. "
        "*Smallest effect seen*: what would have been told from 0 in 80 % of such studies. "
        f"*Seeds to see {EFFECT} %*: as many as that takes for {EFFECT} % with the spread of these seeds, looking "
        "once; ∞ if even endless seeds leave too much to the choice of the rows, which is *rows alone*. "
        "*Seeds correlate*: a variant's NE with the baseline's over the seeds that both have; *pairing saves*: by so "
        "much the variance of the difference is smaller than without pairs. *Calibrated*: the bias of the logits is "
        "fitted on the run's predictions of the validation split, if it has them, else on the other half of the "
        "groups."
    )
