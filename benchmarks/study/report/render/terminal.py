"""Tables of a report on a terminal."""

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable

from cetnet.benchmarks.study.report.document import Table


def print_table(table: Table, title: str, console: Console, *, give_way: tuple[str, ...] = ()) -> None:
    """Print a table; columns of the headings in `give_way` only if the terminal is wide enough."""
    # Two lines a row and no vertical rules, so that it fits a terminal of 100 columns.
    num_published = sum(column.heading == "paper" for column in table.columns)
    if console.width < 100 + 9 * num_published:
        columns = [column for column in table.columns if column.heading not in give_way]
        table = Table(table.heading, table.names, columns)
    shown = RichTable(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False
    )
    shown.add_column(table.heading, overflow="fold", min_width=14)
    for column in table.columns:
        heading = (
            column.heading.replace(" (", "\n(").replace(" parameters", "\nparams").replace(" a ", "\na ")
        )
        shown.add_column(heading.replace("embedding", "embed."), justify="right", no_wrap=True)
    for name, cells in table.rows:
        head = Padding(name.text, (0, 0, 0, 2)) if name.is_component else name.text
        lines = [f"{cell.text}\n{cell.interval}".replace("± ", "±").strip() for cell in cells]
        shown.add_row(head, *lines, style="dim" if name.is_component else None)
    console.print(shown)
