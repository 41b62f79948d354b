"""Where a file may be written is told before the work, and then holds."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.trainer.errors import UserError
from cetnet.trainer.files import check_writable, output_file
from cetnet.trainer.prepare.engine.layout import check_out

NAME = "ä" * 123 + ".parquet."  # 255 bytes


def tree(folder: Path) -> dict[str, bytes | None]:
    """What is in a folder, links as they are."""
    found: dict[str, bytes | None] = {}
    for path in folder.rglob("*"):
        is_file = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = path.read_bytes() if is_file else None
    return found


def write_half(path: Path) -> None:
    with output_file(path) as aside:
        aside.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept", encoding="utf-8")
    Path("folder").mkdir()
    os.mkfifo("fifo")
    for link, target in {
        "link": "file",
        "to_nothing": "folder/new",
        "loop": "loop",
        "device": "/dev/null",
    }.items():
        Path(link).symlink_to(target)
    return tmp_path


@pytest.mark.parametrize("path", ["new", "file", "link", "to_nothing", "a/b/new", NAME, f"a/{NAME}"])
def test_good_places(folder: Path, path: str) -> None:
    before = tree(folder)
    check_writable(Path(path))
    assert tree(folder) == before
    with pytest.raises(KeyboardInterrupt):
        write_half(Path(path))
    assert tree(folder) == before
    with output_file(Path(path)) as aside:
        aside.write_text("whole", encoding="utf-8")
    target = {"link": "file", "to_nothing": "folder/new"}.get(path, path)
    parents = {str(parent): None for parent in Path(path).parents[:-1]}
    assert tree(folder) == before | parents | {target: b"whole"}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("folder", "is a directory"),
        (".", "is a directory"),
        ("fifo", "not a regular file"),
        ("device", "not a regular file"),
        ("loop", "Too many levels"),
        ("file/below", "Not a directory"),
        (f"x{NAME}", "too long"),
        (f"a/x{NAME}/b", "too long"),
        ("/proc/new", "/proc/new: cannot be written .No such file.*; name another place"),
    ],
)
def test_bad_places(folder: Path, path: str, why: str) -> None:
    before = tree(folder)
    with pytest.raises(UserError, match=why):
        check_writable(Path(path))
    assert tree(folder) == before


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), OSError("a library's words")])
@pytest.mark.usefixtures("folder")
def test_a_disk_that_refuses_is_told_of_the_file(raised: OSError) -> None:
    with (
        pytest.raises(UserError, match=r"^a/new: cannot be written .*; (make room|name another)"),
        output_file(Path("a/new")),
    ):
        raise raised


def test_what_another_file_refuses_is_not_told_of_this(folder: Path) -> None:
    before = tree(folder)
    with pytest.raises(FileNotFoundError, match="nowhere"), output_file(Path("a/new")):
        Path("nowhere").read_bytes()
    assert tree(folder) == before


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=260),
        min_size=1,
        max_size=3,
    )
)
def test_what_is_let_pass_can_be_written(parts: list[str]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, *(part for part in parts if part != ".."))
        try:
            check_writable(path)
        except UserError:
            return
        finally:
            assert tree(Path(folder)) == {}
        with output_file(path) as aside:
            aside.write_text("whole", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "whole"


@pytest.mark.parametrize(
    ("path", "why"), [("a" * 201, "more than 200"), ("loop", "leads nowhere"), ("file", "exists")]
)
def test_places_of_a_dataset(folder: Path, path: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        check_out(folder / path, overwrite=False)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", [["predict", "run", "data", "--out"], ["calibrate", "--out"]])
def test_commands_tell_it_first(command: list[str], run: Callable[..., tuple[int, str]]) -> None:
    assert run(*command, "fifo") == (2, "cetnet: fifo is not a regular file; name another\n")
