"""Whatever ends a command is one line, and a file with the traceback."""

import errno
import importlib
import json
import re
import socket
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from cetnet.trainer.cli import app
from cetnet.trainer.errors import UserError
from cetnet.trainer.failures import install_hooks, tell
from cetnet.trainer.files import written_aside


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def raised(action: Callable[[], object]) -> BaseException:
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def fail(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


def end_of_a_loop(folder: Path) -> object:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return (folder / "a").read_bytes()


@pytest.mark.parametrize(
    ("action", "code", "named"),
    [
        (fail(UserError("x: is wrong;\nright it")), 2, ["x: is wrong; right it"]),
        (
            lambda: Path("nowhere/file").read_bytes(),
            2,
            ["nowhere/file: No such file", "name one that exists"],
        ),
        (lambda: Path("x" * 300).read_bytes(), 2, ["xxx: File name too long", "shorter"]),
        (lambda: Path(__file__, "below").read_bytes(), 2, ["test_failures.py/below: Not a directory"]),
        (lambda: Path("file\nof two lines").read_bytes(), 2, ["file of two lines: No such file"]),
        (lambda: Path("/dev/full").write_text("x", encoding="utf-8"), 2, ["No space left", "make room"]),
        (lambda: Path("nowhere/a").rename("b"), 2, ["nowhere/a -> b: No such file"]),
        (fail(OSError(errno.EMFILE, "Too many open files", "f")), 2, ["f: Too many open files", "ulimit -n"]),
        (
            fail(PermissionError(errno.EACCES, "Permission denied", b"f\xff")),
            2,
            ["Permission denied", "right"],
        ),
        (lambda: socket.getaddrinfo("no-such-host.invalid", 80), 2, ["name server"]),
        (lambda: socket.create_connection(("127.0.0.1", 1)), 2, ["Connection refused", "runs there"]),
        (fail(MemoryError()), 2, ["out of memory"]),
        (fail(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")), 2, ["out of memory"]),
        (fail(RuntimeError("can't start new thread")), 2, ["ulimit -u"]),
        (lambda: b"\xff".decode(), 2, ["utf-8", "UTF-8"]),
        (lambda: pl.DataFrame({"a": [1]}).select("b"), 2, ["polars", "ColumnNotFoundError"]),
        (lambda: pa.array(["x"]).cast(pa.int64()), 2, ["pyarrow", "ArrowInvalid"]),
        (lambda: yaml.safe_load("a: [b"), 2, ["yaml"]),
        (lambda: json.loads("{"), 2, ["json", "JSONDecodeError"]),
        (lambda: zlib.decompress(b"x"), 2, ["zlib"]),
        (
            fail(ModuleNotFoundError("No module named 'h5py'", name="h5py")),
            2,
            ["h5py", "install cetnet again"],
        ),
        (fail(RuntimeError("[gloo/device.cc:186] -1 vs -1. Too many open files")), 2, ["ulimit -n"]),
        (
            fail(ValueError("PYTEST_CURRENT_TEST must be x")),
            2,
            ["fix or unset PYTEST_CURRENT_TEST in the env"],
        ),
        (lambda: {}["key"], 1, ["fault of the program, KeyError: 'key'", "please report it"]),
        (fail(AssertionError()), 1, ["fault of the program, AssertionError"]),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else "",
)
def test_a_line_for_each(
    action: Callable[[], object],
    code: int,
    named: list[str],
    temporary: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = raised(action)
    assert tell(error) == code
    out, err = capsys.readouterr()
    assert not out
    (line,) = err.splitlines()
    assert line.startswith("cetnet: ")
    for text in named:
        assert text in line
    files = list(temporary.iterdir())
    assert len(files) == (not isinstance(error, UserError))
    for file in files:
        assert f"(traceback: {file})" in line
        assert type(error).__name__ in file.read_text(encoding="utf-8")


def test_symbolic_links_in_a_circle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(raised(lambda: end_of_a_loop(tmp_path))) == 2
    assert (
        f"{tmp_path / 'a'}: Too many levels of symbolic links; its symbolic links" in capsys.readouterr().err
    )


def test_what_is_written_aside_is_named_as_the_user_did(tmp_path: Path) -> None:
    def write() -> None:
        with written_aside(tmp_path / "scores.parquet") as aside:
            aside.symlink_to("/dev/full")
            aside.write_text("x", encoding="utf-8")

    error = raised(write)
    assert isinstance(error, OSError)
    assert error.filename == str(tmp_path / "scores.parquet")
    assert list(tmp_path.glob("*scores*")) == []


def test_without_a_place_for_the_traceback_its_last_frame_is_told(
    temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary.rmdir()
    assert tell(raised(lambda: {}["key"])) == 1
    assert re.search(rf"KeyError: 'key' \(at {__file__}:\d+, <lambda>\)", capsys.readouterr().err)


def test_threads_and_destructors_are_lines_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", None)
    monkeypatch.setattr(sys, "unraisablehook", None)
    install_hooks()

    class Broken:
        def __del__(self) -> None:
            raise ValueError("in vain")

    for action in (lambda: {}["key"], fail(OSError("of TensorBoard's thread")), fail(SystemExit(3))):
        thread = threading.Thread(target=action)
        thread.start()
        thread.join()
    del thread
    Broken()
    of_the_thread, of_the_destructor = capsys.readouterr().err.splitlines()
    assert "KeyError: 'key'" in of_the_thread
    assert "ignored: ValueError: in vain" in of_the_destructor


def test_a_library_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_library.py").write_text("raise ValueError('Invalid log settings: x')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert tell(raised(lambda: importlib.import_module("a_library"))) == 2
    line = capsys.readouterr().err
    assert "a library does not load (ValueError: Invalid log settings: x)" in line
    assert "variables in the environment" in line


def test_a_file_that_ends_too_early_is_no_abort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def end(_: Path) -> None:
        raise EOFError("No data left in file")

    monkeypatch.setattr("cetnet.trainer.examples.write_examples", end)
    result = CliRunner().invoke(app, ["examples", str(tmp_path)])
    assert isinstance(result.exception, OSError)
    assert str(result.exception) == "a file ends too early (No data left in file)"
