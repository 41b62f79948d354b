"""The report of a tuning: what was chosen, what it took, and what fewer trials would have found."""

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from cetnet.benchmarks.study.definition import PAGE, Study
from cetnet.benchmarks.study.report.document import (
    Block,
    Cell,
    Column,
    Document,
    Folded,
    Name,
    Plot,
    Section,
    Table,
    Text,
)
from cetnet.benchmarks.study.report.render.html import write_html
from cetnet.benchmarks.study.report.render.markdown import write_markdown
from cetnet.benchmarks.study.report.render.terminal import print_table
from cetnet.benchmarks.tune.halving import expected_best
from cetnet.benchmarks.tune.journal import importances
from cetnet.benchmarks.tune.outcome import (
    VARIANTS,
    Outcome,
    first_rung,
    outcomes,
    shown,
    write_trials,
    write_tuning,
    write_variants,
)
from cetnet.benchmarks.tune.search import Search
from cetnet.benchmarks.tune.trials import TUNE
from cetnet.trainer.plan.plot_style import COLORS, LINES, MARKERS, SIGNS, label_ends

HOW_TO_READ = """\
- **Every variant has the same** trials, rungs, seeds and space of the shared keys; further keys of a variant are inside
  the same number of trials (Dodge et al. 2019, arXiv 1909.03004). Equal trials are not equal work: see *Spent*.
- **Trial 0 is the variant as it stands** (not in a grid). Trials of the same number share the values of the shared keys,
  where they are drawn at random.
- **Rungs** compare NE over the same rows of the training stream, each scored before it is learned from, without the
  first part, in which a model finds its feet; one of eta trials goes on (successive halving: Jamieson & Talwalkar 2016,
  arXiv 1502.07943; on click logs: arXiv 2508.14818). The last one is decided by NE on the tuning's split.
- **No number here is a result**: the best of many trials is better than it will be again. Train what was chosen with
  fresh seeds, five or more (Bouthillier et al. 2021, arXiv 2103.03098), and report the test split of those.
"""


def write_results(study: Study, path: Path, searches: Sequence[Search], console: Console) -> None:
    """Write variants.yaml, trials.csv, tune.json and the report into the tuning's folder; print what was chosen."""
    out = study.folder / TUNE
    found = {search.variant: outcomes(search) for search in searches}
    write_variants(study, path, searches, out)
    write_trials(searches, found, out)
    write_tuning(study, path, searches, out)
    chosen = _chosen(searches, found)
    document = Document(
        title=f"Tuning of {study.title or study.name}",
        description=study.description,
        facts=_facts(study, path, found),
        warning=_warning(found),
        sections=[
            Section("Chosen", [chosen, Text(f"As a file for a study's `variants`: `{VARIANTS}`.")]),
            Section("Spent", [_spent(searches, found)]),
            *_expected(searches, found),
            *_importances(searches, found),
            Section("How to read this", [Text(HOW_TO_READ)]),
            Section("Trials", [Folded("Every trial", _trials(searches, found))]),
        ],
    )
    write_markdown(document, out)
    write_html(document, out)
    print_table(chosen, f"{study.name}: chosen on {searches[0].tune.split}", console)
    if warning := document.warning:
        console.print(warning)
    console.print(f"settings: {out / VARIANTS}; report: {out / PAGE}")


def _facts(study: Study, path: Path, found: Mapping[str, Sequence[Outcome]]) -> list[str]:
    assert study.tune
    tune = study.tune
    return [
        f"cetnet tune {shlex.quote(str(path))}",
        f"variants: {len(found)}",
        f"trials of each: {tune.trials} ({tune.sampling})",
        f"rungs: {tune.rungs}, one of {tune.eta} goes on",
        f"seeds: {', '.join(map(str, tune.seeds))}",
        f"split: {tune.split}",
        f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    ]


def _warning(found: Mapping[str, Sequence[Outcome]]) -> str:
    """What the report lacks."""
    without = [variant for variant, of in found.items() if not any(each.state == "chosen" for each in of)]
    return f"Nothing is chosen yet for {', '.join(without)}: no trial is finished." if without else ""


def _chosen(searches: Sequence[Search], found: Mapping[str, Sequence[Outcome]]) -> Table:
    split = searches[0].tune.split
    keys = list(dict.fromkeys(key for search in searches for key in search.space))
    best = [next((each for each in of if each.state == "chosen"), None) for of in found.values()]
    plain = [next((each for each in of if not each.trial.values), None) for of in found.values()]
    columns = [
        Column(
            "trial", [Cell(str(each.trial.number), each.trial.number) if each else Cell() for each in best]
        ),
        Column(f"NE of {split}", [_ne(each.ne[-1]) if each else Cell() for each in best]),
        Column("as it stands", [_last(each) if each else Cell() for each in plain], is_text=True),
    ]
    for key in keys:
        columns.append(Column(key, [_value(each, key) if each else Cell() for each in best], is_text=True))
    return Table("variant", [Name(variant) for variant in found], columns)


def _last(outcome: Outcome) -> Cell:
    """NE of the variant as it stands where it came to its end; else where it stopped."""
    if outcome.state in ("chosen", "finished"):
        return _ne(outcome.ne[-1])
    return Cell(outcome.state, outcome.state)


def _ne(value: float) -> Cell:
    return Cell(f"{value:.5f}", value) if math.isfinite(value) else Cell()


def _value(outcome: Outcome, key: str) -> Cell:
    values = outcome.trial.values
    text = shown(values[key]) if key in values else ("as it stands" if not values else "–")
    return Cell(text, text)


def _spent(searches: Sequence[Search], found: Mapping[str, Sequence[Outcome]]) -> Table:
    def column(title: str, numbers: list[float], form: str = "{:,.0f}") -> Column:
        return Column(title, [Cell(form.format(number), number) for number in numbers])

    of = list(found.values())
    columns = [
        column("trials", [len(each) for each in of]),
        column("finished", [sum(one.state in ("chosen", "finished") for one in each) for each in of]),
        column("failed", [sum(one.state == "failed" for one in each) for each in of]),
        column("keys", [len(search.space) for search in searches]),
        column("rows", [sum(one.trial.rows for one in each) for each in of]),
        column("training seconds", [sum(one.trial.seconds for one in each) for each in of]),
    ]
    return Table("variant", [Name(variant) for variant in found], columns)


def _expected(searches: Sequence[Search], found: Mapping[str, Sequence[Outcome]]) -> list[Section]:
    curves = {variant: expected_best(values) for variant, of in found.items() if (values := first_rung(of))}
    if not curves:
        return []
    where = f"NE of {searches[0].tune.split}" if len(searches[0].windows) == 1 else "NE at the first rung"
    most = max(map(len, curves.values()))
    numbers = sorted({k for k in (1, 2, 3, 5, 9, 20, 50, most) if k <= most})
    columns = [
        Column(f"k = {k}", [_ne(curve[k - 1]) if k <= len(curve) else Cell() for curve in curves.values()])
        for k in numbers
    ]
    text = (
        f"The lowest {where} that one may expect of k trials, were they drawn again (Dodge et al. 2019). A curve that "
        "is flat at its end says that more trials would bring little; of two variants whose curves cross, which is better "
        "depends on how much one tunes."
    )
    if len(searches[0].windows) > 1:
        text += " The first rung is where all trials have a value; it is early in training."
    blocks: list[Block] = [
        Plot("expected_best", f"Expected best {where} after k trials", _draw(curves, where)),
        _table_of(curves, columns),
        Text(text),
    ]
    return [Section("Expected best after k trials", blocks)]


def _table_of(named: Mapping[str, object], columns: Sequence[Column]) -> Table:
    return Table("variant", [Name(variant) for variant in named], columns)


def _draw(curves: Mapping[str, Sequence[float]], where: str) -> Figure:
    figure = Figure(figsize=(9, max(4.5, 0.3 * len(curves))), dpi=150, layout="constrained")
    axes = figure.subplots()
    ends = []
    for index, (variant, curve) in enumerate(curves.items()):
        shifted = (index + index // 7) % 7
        numbers = range(1, len(curve) + 1)
        axes.plot(
            numbers,
            curve,
            color=COLORS[index % 7],
            linestyle=LINES[shifted],
            marker=MARKERS[shifted],
            markersize=4,
        )
        ends.append(
            (len(curve), curve[-1], f"{SIGNS[shifted]} {variant}  {curve[-1]:.4f}", COLORS[index % 7])
        )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("trials")
    axes.set_ylabel(f"expected best {where}, lower is better")
    label_ends(axes, ends, figure.get_figheight())
    return figure


def _importances(searches: Sequence[Search], found: Mapping[str, Sequence[Outcome]]) -> list[Section]:
    shares = {}
    for search in searches:
        of = [each for each in found[search.variant] if first_rung([each])]
        if found_here := importances(search.space, [each.trial.values for each in of], first_rung(of)):
            shares[search.variant] = found_here
    if not shares:
        return []
    keys = list(dict.fromkeys(key for of in shares.values() for key in of))
    columns = [
        Column(key, [Cell(f"{of[key]:.0%}", of[key]) if key in of else Cell() for of in shares.values()])
        for key in keys
    ]
    text = (
        "How much each setting has to do with being among the best trials at the first rung (PED-ANOVA, Watanabe et al. "
        "2023, arXiv 2304.10255). Of few trials this is a hint, no more."
    )
    return [Section("Importance of each setting", [_table_of(shares, columns), Text(text)])]


def _trials(searches: Sequence[Search], found: Mapping[str, Sequence[Outcome]]) -> Table:
    every = [each for of in found.values() for each in of]
    rungs = max(len(search.windows) for search in searches)
    keys = list(dict.fromkeys(key for search in searches for key in search.space))
    columns = [
        Column("trial", [Cell(str(each.trial.number), each.trial.number) for each in every]),
        Column("state", [Cell(each.state, each.state) for each in every], is_text=True),
        *(
            Column(
                f"rung {rung + 1}" if rung + 1 < rungs else f"NE of {searches[0].tune.split}",
                [_ne(each.ne[rung]) if rung < len(each.ne) else Cell() for each in every],
            )
            for rung in range(rungs)
        ),
        Column("rows", [Cell(f"{each.trial.rows:,}", each.trial.rows) for each in every]),
        Column("seconds", [Cell(f"{each.trial.seconds:.1f}", each.trial.seconds) for each in every]),
        *(Column(key, [_value(each, key) for each in every], is_text=True) for key in keys),
    ]
    return Table("variant", [Name(each.trial.variant) for each in every], columns)
