"""What is printed: any text as it is."""

import io

from hypothesis import example, given
from hypothesis import strategies as st
from rich.progress import Progress, TextColumn
from rich.table import Table

from cetnet.trainer.console import PlainConsole
from cetnet.trainer.errors import UserError, printable


def shown(*objects: object, method: str = "print") -> str:
    """What a console prints into a file that takes UTF-8 only."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    getattr(PlainConsole(file=file, width=200), method)(*objects)
    file.seek(0)
    return file.read()


NAMES = [
    "run[lr=0.1]",
    "run[/b]",
    "[red]x",
    ":smile:",
    "{task}",
    "50%",
    "a|b`c`",
    r"\[x]",
    "$x$",
    "x" * 300,
    "é ✓",
]


def test_a_text_is_printed_as_it_is() -> None:
    for name in NAMES:
        assert shown(f"{name}: 256 rows") == f"{name}: 256 rows\n"
        assert name[:190] in shown(name[:190], method="rule")


def test_a_table_shows_its_texts_as_they_are() -> None:
    for name in NAMES[:-2]:
        table = Table(name, title=f"{name} title", caption=f"{name} caption")
        table.add_row(f"{name} cell")
        lines = shown(table)
        for part in ("title", "caption", "cell"):
            assert f"{name} {part}" in lines


def test_a_progress_bar_shows_its_description_as_it_is() -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=200, force_terminal=True)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task("run[/b] :smile:")
    assert "run[/b] :smile:" in file.getvalue()


@given(st.text(st.characters(codec=None, categories=["L", "P", "S", "Cc", "Cs", "Zs"])))
@example("\x1b[31mred\udce9\x85\x00")
def test_any_text_can_be_printed(text: str) -> None:
    line = shown(text)
    assert not {c for c in line if ord(c) < 32 or 127 <= ord(c) < 160} - {"\n", "\t"}
    assert line.replace("\t", " ").split() == printable(text).replace("\t", " ").split()
    assert len(str(UserError(text)).splitlines()) <= 1
