"""What a report says, in the order it is read: sections of text, tables and plots.

`compose` makes one, `render` turns it into Markdown, HTML and terminal tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.figure import Figure

MISSING = "–"


class Link(NamedTuple):
    """A link, relative to the report's folder."""

    text: str
    href: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, and what it is sorted by; unknown without arguments."""

    text: str = MISSING
    value: float | str | None = None
    interval: str = ""
    significant: bool = False
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Name:
    """The head of a table's row; a component stays under its variant."""

    text: str
    is_component: bool = False
    is_baseline: bool = False
    href: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table, with a cell for each row."""

    heading: str
    cells: list[Cell]
    is_text: bool = False


@dataclass(frozen=True)
class Table:
    """Rows by name; columns in which nothing is known are left out."""

    heading: str
    names: Sequence[Name]
    columns: Sequence[Column]

    def __post_init__(self) -> None:
        known = [column for column in self.columns if any(cell != Cell() for cell in column.cells)]
        object.__setattr__(self, "columns", known)

    @property
    def rows(self) -> list[tuple[Name, tuple[Cell, ...]]]:
        """Each row's name and cells."""
        return list(
            zip(self.names, zip(*(column.cells for column in self.columns), strict=True), strict=True)
        )


@dataclass(frozen=True)
class Text:
    """Markdown."""

    markdown: str


@dataclass(frozen=True)
class Plot:
    """A figure, the name of its file, and what it shows in words."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Commands:
    """Lines of shell, which nobody reads and somebody copies."""

    summary: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Folded:
    """A table that few look at."""

    summary: str
    table: Table


Block = Text | Table | Plot | Commands | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; `level` is 2, or 3 for a part of the section above."""

    title: str
    blocks: Sequence[Block]
    level: int = 2


@dataclass(frozen=True)
class Document:
    """A report. `facts` are its head in a few words each; `warning` is what the reader must know first."""

    title: str
    description: str
    facts: Sequence[str]
    sections: Sequence[Section]
    warning: str = ""
