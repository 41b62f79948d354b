"""The report of a study: its numbers, tables and plots, from the runs that are finished."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from cetnet.benchmarks.study.definition import PAGE, TABLE, Run, Study, Until
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
from cetnet.benchmarks.study.report.forest import draw_forest
from cetnet.benchmarks.study.report.how_to_read import has_gains, how_to_read, sureness
from cetnet.benchmarks.study.report.plots import draw_gain, draw_ne
from cetnet.benchmarks.study.report.render.html import write_html
from cetnet.benchmarks.study.report.render.markdown import write_markdown
from cetnet.benchmarks.study.report.render.terminal import print_table
from cetnet.benchmarks.study.report.rows import (
    BAYES,
    SIZES,
    Row,
    bayes_row,
    row_against_itself,
    rows_over_others,
    section_rows,
    undefined,
)
from cetnet.benchmarks.study.report.run_files import Folders, folders_of
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
    further_columns,
    gain_columns,
    metric_columns,
    seeds_column,
    sureness_columns,
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
    found = folders_of(finished)
    folders = {variant: found[variant] for variant in study.variants if variant in found}
    with console.status("comparing"):
        sections = section_rows(study, folders)
    sections = {baseline: rows for baseline, rows in sections.items() if rows}
    bayes = bayes_row(folders, study.split)
    spectra = _read_all_spectra(study, finished, console)

    rows = [row for section in sections.values() for row in section]
    written = [row for section in sections.values() for row in _with_itself(study, section)]
    _print(study, rows + ([bayes] if bayes else []), written, console)
    write_csv(written + ([bayes] if bayes else []), out / TABLE)
    if spectra:
        _write_spectra(spectra, out / "embeddings.csv")
    also = _also(study, folders, sections)
    if also:
        print_table(also, "Further comparisons", console, give_way=("AUC gain (pp)", "gAUC gain (pp)"))
    document = Document(
        title=study.title or study.name,
        description=study.description,
        facts=facts(study, command, finished, runs),
        warning=missing_runs(finished, runs),
        sections=[
            *_scaling(study, folders, sections),
            *_results(study, folders, sections, bayes),
            *([Section("Further comparisons", [Text(ALSO_NOTE), also])] if also else []),
            *_embeddings(study, sections, spectra),
            Section("Cost", [_table(rows, cost_columns(rows)), Text(COST_NOTE)]),
            how_to_read(study, rows, bayes, undefined(folders, study.split)),
            runs_section(finished, out),
        ],
    )
    write_markdown(document, out)
    write_html(document, out)
    console.print(f"report: {out / PAGE}")


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    return Table("variant", [row.name for row in rows], columns)


def _print(study: Study, rows: Sequence[Row], gaining: Sequence[Row], console: Console) -> None:
    title = f"{study.title or study.name} ({study.split})"
    print_table(_table(rows, metric_columns(rows, rows)), title, console, give_way=SIZES)
    several = len(study.sections) > 1  # then each baseline heads its own
    compared = [row for row in gaining if has_gains(row) or (several and row.is_baseline)]
    if any(map(has_gains, rows)):
        against = "the baseline above, a row of –" if several else next(iter(study.sections))
        gains = _table(compared, gain_columns(compared, rows))
        print_table(gains, f"Gains over {against}", console, give_way=("AUC gain (pp)", "gAUC gain (pp)"))


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
        models = [row for row in rows if not row.component]
        if students := [f"`{row.variant}`" for row in models if row.is_student]:
            blocks.append(Text(STUDENTS_NOTE.format(names=", ".join(students))))
        followed = [row.variant for row in models if not row.is_student]
        gaining = [row for row in _with_itself(study, rows) if has_gains(row)]
        if any(row.estimates for row in gaining):
            margin = (study.until or Until()).half_width
            if figure := draw_forest(
                [row for row in gaining if not row.component],
                baseline,
                margin,
                f"{title}: gains over {baseline}",
            ):
                blocks.append(Plot(f"forest{suffix}", f"Gains over {baseline} with 95 % intervals", figure))
            blocks.append(_table(gaining, gain_columns(gaining, every)))
            judged = [row for row in gaining if row.comparison and row.estimates]
            if any((row.paired_seeds or 0) > 1 for row in judged):
                blocks += [
                    Text("How sure that is:"),
                    _table(judged, sureness_columns(judged, every)),
                    Text(sureness(study, models)),
                ]
        window = {variant: read_curve(folders[variant], "ne/window/fused") for variant in followed}
        panels = _panels(study, [row for row in rows if not row.is_student])
        if window:
            caption = "Progressive NE against the number of examples"
            blocks.append(Plot(f"ne_curves{suffix}", caption, draw_ne(window, references, title, panels)))
        if any(row.estimates for row in rows) and baseline in followed:
            lifetime = {variant: read_curve(folders[variant], "ne/lifetime/fused") for variant in followed}
            gains = {variant: gain_curve(curve, lifetime[baseline]) for variant, curve in lifetime.items()}
            caption = f"NE gain over {baseline} against the number of examples"
            blocks.append(Plot(f"gain{suffix}", caption, draw_gain(gains, baseline, title, panels)))
        further = further_columns(with_bayes, every)
        blocks.append(Folded("Calibrated NE, NE of the last window, LogLoss", _table(with_bayes, further)))
        parts.append(
            Section(f"Compared with {baseline}", blocks, level=3) if several else Section("Results", blocks)
        )
    return parts


def _with_itself(study: Study, rows: Sequence[Row]) -> list[Row]:
    """The rows of a section, and one of its baseline against itself if it has the seeds for it."""
    own = [row_against_itself(row, study.looks) for row in rows if row.is_baseline]
    return [*rows, *filter(None, own)]


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
        first = next(iter(study.scaling))
        blocks += [
            Text(f"Gains over {first} with as many embedding parameters; intervals as in the tables below:"),
            _over_others(rows_over_others(study, folders, pairs), pairs, sections),
        ]
    return [Section("Scaling of embeddings", blocks)]


def _over_others(
    rows: Sequence[Row], pairs: Sequence[tuple[Row, Row]], sections: Mapping[str, Sequence[Row]]
) -> Table:
    """The gains of the first row of each pair over the second."""
    every = [row for of_section in sections.values() for row in of_section]
    over = Column("over", [Cell(other.variant, other.variant) for _, other in pairs], is_text=True)
    return _table(rows, [over, *gain_columns(rows, every)])


def _also(study: Study, folders: Folders, sections: Mapping[str, Sequence[Row]]) -> Table | None:
    """Gains over others than the baselines, which the study asks for."""
    rows = {row.variant: row for of_section in sections.values() for row in of_section if not row.component}
    pairs = sorted(
        (
            (rows[variant], rows[other])
            for variant, others in study.also.items()
            for other in others
            if variant in rows and other in rows
        ),
        key=lambda pair: pair[1].variant,
    )
    return _over_others(rows_over_others(study, folders, pairs), pairs, sections) if pairs else None


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

ALSO_NOTE = "Gains over others than the baseline; verdicts by Holm's method over this table."

STUDENTS_NOTE = """\
Students, which learn from teachers: {names}. Their teachers have seen the rows to come, so a student's NE along
training, before it learns from the rows, says nothing of it: neither progressive NE nor that of the last window is
given, and gains and plots of these are without students. What compares them is the split."""

COST_NOTE = """\
Embedding bytes are those of the trained tables, without their optimizer's state. Training seconds do not include
evaluation; peak memory is what the processes of a run had resident at most, summed, the highest of the seeds."""


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
