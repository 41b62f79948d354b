"""The report of a study: its numbers, tables and plots, from the runs that are finished."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from cetnet.benchmarks.study.definition import PAGE, TABLE, Run, Study
from cetnet.benchmarks.study.report.curves import gain_curve, read_curve
from cetnet.benchmarks.study.report.document import (
    Block,
    Cell,
    Column,
    Document,
    Folded,
    Plot,
    Section,
    Table,
    Text,
)
from cetnet.benchmarks.study.report.plots import draw_gain, draw_ne
from cetnet.benchmarks.study.report.render.html import write_html
from cetnet.benchmarks.study.report.render.markdown import write_markdown
from cetnet.benchmarks.study.report.render.terminal import print_table
from cetnet.benchmarks.study.report.rows import (
    BAYES,
    SIZES,
    Folders,
    Row,
    bayes_row,
    same_size_rows,
    section_rows,
    undefined,
)
from cetnet.benchmarks.study.report.runs import facts, missing_runs, runs_section
from cetnet.benchmarks.study.report.scaling import (
    draw_scaling,
    draw_spectra,
    lines_of,
    rank_columns,
    same_size_pairs,
    summary_columns,
)
from cetnet.benchmarks.study.report.spectra import Spectra, read_spectra, summarize, wide_enough
from cetnet.benchmarks.study.report.tables import (
    cost_columns,
    gain_columns,
    metric_columns,
    most_paired,
    progressive_columns,
    seeds_column,
    write_csv,
)


def write_report(study: Study, command: str, runs: Sequence[Run], console: Console) -> None:
    """Print the tables; write report.html, report.md, table.csv and the plots into the study's folder.

    Args:
        study: What was to be trained and compared.
        command: What it is run with, which the report names.
        runs: All its runs; the report is of those that are finished, at least one, and says which are missing.
        console: Where the tables are printed.

    Raises:
        UserError: a run lacks the split, or its files cannot be read or compared.
    """
    out = study.folder
    finished = [run for run in runs if run.finished]
    folders: dict[str, dict[int, Path]] = {}
    for variant in study.variants:
        if of_variant := {run.seed: run.folder for run in finished if run.variant == variant}:
            folders[variant] = of_variant
    sections = section_rows(folders, study.sections, study.split, study.components, study.paper)
    sections = {baseline: rows for baseline, rows in sections.items() if rows}
    bayes = bayes_row(folders, study.split)
    spectra = _read_all_spectra(study, finished, console)

    rows = [row for section in sections.values() for row in section]
    _print(study, rows + ([bayes] if bayes else []), console)
    write_csv(rows + ([bayes] if bayes else []), out / TABLE)
    if spectra:
        _write_spectra(spectra, out / "embeddings.csv")
    document = Document(
        title=study.title or study.name,
        description=study.description,
        facts=facts(study, command, finished, runs),
        warning=missing_runs(finished, runs),
        sections=[
            *_scaling(study, folders, sections),
            *_results(study, folders, sections, bayes),
            *_embeddings(study, sections, spectra),
            Section("Cost", [_table(rows, cost_columns(rows)), Text(COST_NOTE)]),
            _how_to_read(study, rows, bayes, undefined(folders, study.split)),
            runs_section(finished, out),
        ],
    )
    write_markdown(document, out)
    write_html(document, out)
    console.print(f"report: {out / PAGE}")


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    return Table("variant", [row.name for row in rows], columns)


def _print(study: Study, rows: Sequence[Row], console: Console) -> None:
    title = f"{study.title or study.name} ({study.split})"
    print_table(_table(rows, metric_columns(rows, rows)), title, console, give_way=SIZES)
    several = len(study.sections) > 1  # then each baseline heads its own
    compared = [row for row in rows if _has_gains(row) or (several and row.is_baseline)]
    if any(map(_has_gains, rows)):
        against = "the baseline above, a row of –" if several else next(iter(study.sections))
        print_table(_table(compared, gain_columns(compared, rows)), f"Gains over {against}", console)


# --- sections ------------------------------------------------------------------------------------------


def _results(
    study: Study, folders: Folders, sections: Mapping[str, Sequence[Row]], bayes: Row | None
) -> list[Section]:
    """Metrics, gains and curves, for each baseline."""
    title = study.title or study.name
    every = [row for rows in sections.values() for row in rows]
    references = {f"{BAYES} ({study.split})": bayes.metrics["NE"][0]} if bayes and bayes.metrics["NE"] else {}
    several = len(study.sections) > 1
    parts = [Section("Results", [])] if several else []
    for baseline, rows in sections.items():
        suffix = f"_{baseline}" if several else ""
        with_bayes = [*rows, bayes] if bayes else rows
        blocks: list[Block] = [_table(with_bayes, metric_columns(with_bayes, every))]
        if gaining := [row for row in rows if _has_gains(row)]:
            blocks.append(_table(gaining, gain_columns(gaining, every)))
        models = [row for row in rows if not row.component]
        window = {row.variant: read_curve(folders[row.variant], "ne/window/fused") for row in models}
        panels = _panels(study, rows)
        caption = "Progressive NE against the number of examples"
        blocks.append(Plot(f"ne_curves{suffix}", caption, draw_ne(window, references, title, panels)))
        if any(row.gains for row in rows):
            lifetime = {row.variant: read_curve(folders[row.variant], "ne/lifetime/fused") for row in models}
            gains = {variant: gain_curve(curve, lifetime[baseline]) for variant, curve in lifetime.items()}
            caption = f"NE gain over {baseline} against the number of examples"
            blocks += [
                Plot(f"gain{suffix}", caption, draw_gain(gains, baseline, title, panels)),
                _table(models, progressive_columns(models, lifetime, gains, every)),
            ]
        parts.append(
            Section(f"Compared with {baseline}", blocks, level=3) if several else Section("Results", blocks)
        )
    return parts


def _has_gains(row: Row) -> bool:
    """Whether the row has a gain that is defined."""
    return row.gains is not None and any(math.isfinite(gain.point) for gain in row.gains)


def _panels(study: Study, rows: Sequence[Row]) -> dict[str, list[str]] | None:
    """A panel for each method of scaling, and one for the variants without."""
    lines = lines_of(study, rows)
    if not lines:
        return None
    panels = {method: [row.variant for row in members] for method, members in lines.items()}
    drawn = {variant for members in panels.values() for variant in members}
    if others := [row.variant for row in rows if not row.component and row.variant not in drawn]:
        panels["others"] = others
    return panels


def _scaling(study: Study, folders: Folders, sections: Mapping[str, Sequence[Row]]) -> list[Section]:
    figure = draw_scaling(study, sections) if study.scaling else None
    if figure is None:
        return []
    text = "Each line starts at its section's baseline. Points are means over the seeds, bars standard deviations."
    if study.paper:
        text += f" Published: {study.paper.source}; at the sizes of ours, and on a scale of its own."
    caption = "Metrics against the number of embedding parameters"
    blocks: list[Block] = [Plot("scaling", caption, figure), Text(text)]
    if pairs := same_size_pairs(study, sections):
        rows = same_size_rows(folders, pairs, study.split, study.paper)
        every = [row for of_section in sections.values() for row in of_section]
        lifetime = {
            row.variant: read_curve(folders[row.variant], "ne/lifetime/fused")
            for pair in pairs
            for row in pair
        }
        gains = {
            row.variant: gain_curve(lifetime[row.variant], lifetime[same.variant]) for row, same in pairs
        }
        progressive = progressive_columns(rows, lifetime, gains, every)[-1]
        over = Column("over", [Cell(other.variant, other.variant) for _, other in pairs], is_text=True)
        first = next(iter(study.scaling))
        blocks += [
            Text(f"Gains over {first} with as many embedding parameters; intervals as in the tables below:"),
            _table(rows, [over, *gain_columns(rows, every), progressive]),
        ]
    return [Section("Scaling of embeddings", blocks)]


def _embeddings(
    study: Study, sections: Mapping[str, Sequence[Row]], spectra: Mapping[str, Mapping[int, Spectra]]
) -> list[Section]:
    """Spectra, information abundance and effective rank, for each baseline."""
    if not study.embeddings:
        return []
    runs = [run for of_variant in spectra.values() for run in of_variant.values()]
    if not runs:
        return [Section("Embeddings", [Text("No run has a checkpoint, so there are no tables to look at.")])]
    tables = wide_enough(runs)
    number = len({table for run in runs for table in run.side_by_side})
    named = ", ".join(f"`{table}`" for table in tables)
    parts = [Section("Embeddings", [Text(EMBEDDINGS_NOTE.format(tables=named, few=len(tables), all=number))])]
    several = len(study.sections) > 1
    every = [row for rows in sections.values() for row in rows]
    wide = {
        variant: [run for run in of_variant.values() if run.side_by_side.keys() & set(tables)]
        for variant, of_variant in spectra.items()
    }
    for baseline, rows in sections.items():
        models = [row for row in rows if wide.get(row.variant) and not row.component]
        if not models:
            continue
        of_models = {row.variant: wide[row.variant] for row in models}
        summaries = [[summarize(run, tables) for run in of_variant] for of_variant in of_models.values()]
        seeds = seeds_column(models, every)
        blocks: list[Block] = [
            Plot(
                f"spectra_{baseline}" if several else "spectra",
                "Singular values of the tables over the largest, by total width",
                draw_spectra(study, of_models, tables),
            ),
            _table(models, [*seeds, *summary_columns(summaries)]),
            Folded(
                "Effective rank of every table",
                _table(models, [*seeds, *rank_columns(list(of_models.values()))]),
            ),
        ]
        if several:
            parts.append(Section(f"Tables of {baseline}", blocks, level=3))
        else:
            parts[0] = Section("Embeddings", [*parts[0].blocks, *blocks])
    return parts


EMBEDDINGS_NOTE = """\
How much of their width do embedding tables use? σ are the singular values of a trained table as it is, each row
once, without row 0 (padding, rare and unknown values). *IA*, information abundance, is Σσ / max σ (Guo et al., arXiv
2310.04400); *effective rank* is exp of the entropy of σ / Σσ (Roy and Vetterli, 2007). Both go from 1, collapsed, to
the width. An ensemble's tables of a feature are taken side by side, which compares with one table of that total
width; *of one table* is the mean of its tables alone. Numbers are plain means over the tables that have as many
values as the widest is wide ({few} of {all}: {tables}), then means ± standard deviations over seeds; spectra are
geometric means. Every table of every run is in [embeddings.csv](embeddings.csv)."""

COST_NOTE = """\
Embedding bytes are those of the trained tables, without their optimizer's state. Training seconds do not include
evaluation; peak memory is what the processes of a run had resident at most, summed, the highest of the seeds."""


def _how_to_read(study: Study, rows: Sequence[Row], bayes: Row | None, missing: str | None) -> Section:
    """What the tables of metrics and gains mean."""
    baselines = list(study.sections)
    seeds = {row.seeds for row in rows if row.seeds}
    several = max(seeds) > 1
    paired = {row.paired_seeds for row in rows if row.gains}
    counted = (
        f"{max(seeds)} seeds" if len(seeds) == 1 else "the seeds, of which column `seeds` has the number"
    )
    sentences = [f"Metrics are the mean ± standard deviation of {counted}." if several else "One seed."]
    if missing:
        sentences.append(f"Split {study.split} has {missing}; nor are there gains in these.")
    if any(map(_has_gains, rows)):
        against = f"`{baselines[0]}`"
        if len(baselines) > 1:
            against = f"each section's baseline ({', '.join(f'`{baseline}`' for baseline in baselines)})"
        sentences += [
            f"Gains are over {against}: of NE in percent of the baseline's, negative is better; of AUC and gAUC in",
            "percentage points, positive is better. In brackets the 95 % interval by paired bootstrap over the",
            "evaluation's groups (rows, where there are none);",
            "it covers the choice of the evaluation data"
            + (
                " and the spread between seeds (Student's t)."
                if most_paired(rows) > 1
                else ", not the spread between seeds."
            ),
            "Bold: the interval is without 0; of many gains, some are so by chance.",
        ]
        if 1 in paired and len(paired) > 1:
            sentences.append(
                "A gain over one seed lacks the spread between seeds in its interval, and is never bold."
            )
        if 2 in paired:
            sentences.append(
                "With two seeds Student's t has one degree of freedom: intervals of little use, never bold."
            )
    if len(seeds) > 1:
        sentences.append(
            "Gains are over the seeds that both the variant and the baseline have; means over different seeds are "
            "not to be compared with each other."
        )
    if any(max(row.metrics.get("NE") or [0]) > 1 for row in rows):
        sentences.append("NE above 1 is worse than to predict the base rate everywhere.")
    if any(row.gains for row in rows):
        sentences.append(
            "NE since the start of training scores every batch before it is learned from; the interval of its "
            "gain is Student's t over the seeds, and covers the spread between them alone. It is measured in "
            "training mode, with dropout and each batch's own normalisation."
        )
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
            "In the plots, lines are means over the seeds, bands reach from the lowest to the highest."
        )
    return Section("How to read it", [Text("\n".join(sentences))])


# --- spectra -------------------------------------------------------------------------------------------


def _read_all_spectra(study: Study, runs: Sequence[Run], console: Console) -> dict[str, dict[int, Spectra]]:
    """Of each variant's runs that have tables to look at, by seed."""
    found: dict[str, dict[int, Spectra]] = {}
    if not study.embeddings:
        return found
    with console.status("reading embedding tables"):
        for run in runs:
            spectra = read_spectra(run)
            if spectra and spectra.spectra:
                found.setdefault(run.variant, {})[run.seed] = spectra
    return found


def _write_spectra(spectra: Mapping[str, Mapping[int, Spectra]], path: Path) -> None:
    """A line per table, and per feature for an ensemble's tables side by side (no component)."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        header = ("variant", "seed", "component", "table", "values", "width")
        writer.writerow([*header, "information abundance", "effective rank"])
        for variant, of_variant in spectra.items():
            for seed, run in of_variant.items():
                for one in run.spectra:
                    line = [variant, seed, one.owner, one.table, one.values, one.width]
                    writer.writerow([*line, one.information_abundance, one.effective_rank])
