"""A report as Markdown, with its plots as PNG files beside it."""

from pathlib import Path
from urllib.parse import quote

from cetnet.benchmarks.study.definition import MARKDOWN
from cetnet.benchmarks.study.report.document import Block, Cell, Commands, Document, Folded, Plot, Table, Text
from cetnet.trainer.files import write_text


def write_markdown(document: Document, out: Path) -> None:
    """Write report.md and the plots into the folder `out`."""
    parts = [
        f"# {_escape(document.title)}",
        document.description.strip(),
        document.warning and f"**{document.warning}**",
    ]
    parts.append(" · ".join(document.facts))
    for section in document.sections:
        parts.append(f"{'#' * section.level} {section.title}")
        parts += [_block(block, out) for block in section.blocks]
    write_text(out / MARKDOWN, "\n\n".join(filter(None, parts)) + "\n")


def _block(block: Block, out: Path) -> str:
    match block:
        case Text():
            return block.markdown.strip()
        case Table():
            return _table(block)
        case Folded():
            return (
                f"<details><summary>{_escape(block.summary)}</summary>\n\n{_table(block.table)}\n\n</details>"
            )
        case Commands():
            return "\n".join([f"{block.summary}:\n\n```sh", *block.lines, "```"])
        case Plot():
            block.figure.savefig(out / f"{block.name}.png")
            block.figure.set_layout_engine("none")  # it is laid out now; the page's SVG need not do it again
            return f"![{block.caption}]({quote(block.name)}.png)"


def _table(table: Table) -> str:
    rules = "".join(":--|" if column.is_text else "--:|" for column in table.columns)
    headings = [table.heading, *(column.heading for column in table.columns)]
    headings = [_escape(heading) for heading in headings]
    lines = [f"| {' | '.join(headings)} |", f"|:--|{rules}"]
    for name, cells in table.rows:
        head = f"&emsp;{_escape(name.text)}" if name.is_component else _escape(name.text)
        lines.append(f"| {' | '.join([head, *map(_cell, cells)])} |")
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    links = [f"[{link.text}]({link.href})" for link in cell.links]
    text = f"**{_escape(cell.text)}**" if cell.significant else _escape(cell.text)
    return " ".join(filter(None, [text, cell.interval, *links]))


def _escape(text: str) -> str:
    """Neither HTML nor the end of a table's cell."""
    return text.replace("<", "&lt;").replace("|", "\\|")
