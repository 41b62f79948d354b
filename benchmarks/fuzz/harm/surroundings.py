"""Surroundings that a command doesn't like: names, disks, limits, streams, environments, signals."""

import json
import os
import random
import resource
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cetnet.benchmarks.fuzz.sandbox import mount

if TYPE_CHECKING:
    from cetnet.benchmarks.fuzz.cases import Case

_THINGS = ["directory", "file", "fifo", "socket", "dangling link", "loop", "/dev/null", "empty directory"]
LEGAL = [
    *(
        "a b",
        "a[b]",
        "[/b]",
        "[red]x",
        "a\nb",
        "d\u00e9j\u00e0",
        "a'b\"c",
        "a=b",
        "a:b",
        "x" * 150,
        "#a",
        "%s",
        "{x}",
    ),
    *(
        "a,b",
        "*",
        "?x",
        "a\\b",
        "a\tb",
        "\U0001f600",
        "a;b",
        "a&b",
        "(a)",
        "run.tmp",
        "old",
        "new",
        "00",
        "null",
        "1e3",
        "train",
    ),
]
REFUSED = [
    "x" * 255,
    "x" * 256,
    "\udcff",
    "a\udc80b",
    "",
    ".",
    "..",
    "/",
    "/dev/null",
    "/dev/full",
    "/proc/x",
    "/proc/self/fd/1",
]
ENVIRONMENTS: list[dict[str, str | None]] = [
    {"HOME": None},
    {"PATH": None},
    {"PATH": ""},
    {"TMPDIR": None},
    {"TMPDIR": "/nonexistent"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LANG": "xx_YY", "LC_ALL": "xx_YY.ISO-8859-1", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"COLUMNS": "1"},
    {"COLUMNS": "x", "LINES": "-3"},
    {"COLUMNS": "0"},
    {"TERM": "dumb"},
    {"TERM": "\x1b[", "FORCE_COLOR": "1"},
    {"NO_COLOR": "1", "TERM": None},
    {"TTY_COMPATIBLE": "1", "FORCE_COLOR": "1"},
    {"RANK": "x"},
    {"RANK": "0"},
    {"RANK": "-1", "WORLD_SIZE": "1"},
    {"RANK": "5", "WORLD_SIZE": "2"},
    {"WORLD_SIZE": "x"},
    {"WORLD_SIZE": "0"},
    {"WORLD_SIZE": ""},
    {"WORLD_SIZE": "-1"},
    {"LOCAL_RANK": "x"},
    {"LOCAL_WORLD_SIZE": "0"},
    {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "no.such.host", "MASTER_PORT": "1"},
    {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"},
    {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"},
    {"MASTER_PORT": "x"},
    {"OMP_NUM_THREADS": "x"},
    {"OMP_NUM_THREADS": "0"},
    {"OMP_NUM_THREADS": "-1"},
    {"OMP_NUM_THREADS": "999999"},
    {"POLARS_MAX_THREADS": "x"},
    {"POLARS_MAX_THREADS": "0"},
    {"POLARS_MAX_THREADS": ""},
    {"MKL_NUM_THREADS": "x"},
    {"ARROW_DEFAULT_MEMORY_POOL": "x"},
    {"ARROW_IO_THREADS": "0"},
    {"PYTHONHASHSEED": "1"},
    {"PYTHONOPTIMIZE": "2"},
    {"PYTHONDONTWRITEBYTECODE": "1"},
    {"PYTHONWARNINGS": "error"},
    {"PYTHONUNBUFFERED": "1"},
    {"PYTHONDEVMODE": "1"},
    {"MPLBACKEND": "x"},
    {"MPLCONFIGDIR": "/dev/null"},
    {"CUDA_VISIBLE_DEVICES": "x"},
    {"TORCHELASTIC_RUN_ID": "a\nb"},
    {"TORCHELASTIC_ERROR_FILE": "/nonexistent/x"},
    {"TORCHELASTIC_ERROR_FILE": "error.json"},
    {"TZ": "x/y"},
    {"SOURCE_DATE_EPOCH": "x"},
    {"MALLOC_ARENA_MAX": "x", "MALLOC_TRIM_THRESHOLD_": "x"},
    {"TORCH_LOGS": "x"},
    {"TORCH_DISTRIBUTED_DEBUG": "x"},
    {"GLOO_SOCKET_IFNAME": "x"},
    {"KINETO_LOG_LEVEL": "x"},
]


def surround(case: "Case", sandboxed: bool) -> None:
    """Do one thing to what is around a command."""
    ways: dict[Callable[[Case], None], int] = {limit: 2, stream: 3, environment: 4, stop: 3, small_files: 2}
    if case.inputs:
        ways |= {replace_input: 4}
    if case.outputs:
        ways |= {occupy_output: 4}
    if case.inputs or case.outputs:
        ways |= {name: 4}
    if sandboxed:
        ways |= {read_only: 2}
        ways |= {small_disk: 4} if case.outputs else {}
        ways |= {nobody: 2} if _any_user() else {}
    case.rng.choices(list(ways), list(ways.values()))[0](case)


def _any_user() -> bool:
    """Whether we may be another user: root, and not of a namespace that has no others."""
    if os.geteuid():
        return False
    return Path("/proc/self/uid_map").read_text(encoding="utf-8").split()[2] == "4294967295"


def name(case: "Case") -> None:
    """An odd name, of an input or an output."""
    old = case.rng.choice(case.inputs + case.outputs)
    legal = case.rng.random() < 0.75
    new = case.rng.choice(LEGAL if legal else REFUSED)
    if legal:
        new += "".join(Path(old).suffixes)
    try:
        case.rename(old, new)
    except (OSError, ValueError):
        legal = False  # no name that this file system has
        case.point(old, new)
    (case.harmless if legal else case.done).append(f"{old} is called {new!r:.40}")


def replace_input(case: "Case") -> None:
    """Something that is no file of the wanted kind in place of an input."""
    old = case.rng.choice(case.inputs)
    thing = case.rng.choice(["missing", *_THINGS])
    _put(case.folder / old, thing, case.rng)
    case.done.append(f"{old} is replaced: {thing}")


def occupy_output(case: "Case") -> None:
    """Something is in the way of what is written."""
    old = case.rng.choice(case.outputs)
    place = case.rng.choice(["", "", "below a file", "below nothing", "below a loop"])
    if place == "below nothing":
        case.point(old, f"no/such/{old}")
        case.harmless.append("in a folder that isn't there")
        return
    if place:
        _put(case.folder / "parent", "file" if place == "below a file" else "loop", case.rng)
        case.point(old, f"parent/{old}")
        case.done.append(f"{old} is {place}")
        return
    thing = case.rng.choice([*_THINGS, "/dev/full"])
    _put(case.folder / old, thing, case.rng)
    case.done.append(f"where {old} goes there is: {thing}")


def _put(path: Path, thing: str, rng: random.Random) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    match thing:
        case "directory":
            path.mkdir()
            (path / "x").write_bytes(b"x")
        case "empty directory":
            path.mkdir()
        case "file":
            path.write_bytes(rng.choice([b"", b"x", b"{}", b"PAR1"]))
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                here = os.open(path.parent, os.O_RDONLY)
                server.bind(f"/proc/self/fd/{here}/{path.name}")
                os.close(here)
        case "dangling link":
            path.symlink_to("nowhere/at/all")
        case "loop":
            path.symlink_to(path.name)
        case "/dev/null" | "/dev/full":
            path.symlink_to(thing)


def limit(case: "Case") -> None:
    """Few open files, or little memory."""
    kind, values = case.rng.choice(
        [(resource.RLIMIT_NOFILE, [24, 32, 48, 64, 128]), (resource.RLIMIT_STACK, [2**18, 2**20])]
    )
    value = case.rng.choice(values)
    case.surroundings["limits"] = {kind: value}
    case.done.append(f"limit {kind}: {value}")


def small_files(case: "Case") -> None:
    """No file may be larger than so many bytes."""
    value = case.rng.choice([0, 1, 100, 1000, 4000, 20_000, 100_000])
    case.surroundings["limits"] = {resource.RLIMIT_FSIZE: value}
    case.done.append(f"files of at most {value} bytes")


def small_disk(case: "Case") -> None:
    """Outputs go to a disk that is soon full."""
    size = case.rng.choice([4, 8, 16, 40, 80, 160, 320, 1000])
    case.mount(case.folder / "disk", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs")
    for old in case.outputs:
        if (case.folder / old).is_dir():
            with suppress(OSError):
                shutil.copytree(case.folder / old, case.folder / "disk" / old)
        case.point(old, f"disk/{old}")
    case.done.append(f"a disk of {size} kB")


def read_only(case: "Case") -> None:
    """Nothing can be written where the command stands, or where its outputs go."""
    place = case.folder
    if case.outputs and case.rng.random() < 0.5:
        old = case.rng.choice(case.outputs)
        if not (case.folder / old).exists():
            place = case.folder / "ro"
            place.mkdir()
            case.point(old, f"ro/{old}")
    case.mount(place, "--bind", str(place))
    mount("-o", "remount,bind,ro", str(place))
    case.done.append(f"{place.name} is read-only")


def nobody(case: "Case") -> None:
    """A user without rights: to write here, or to read an input."""
    case.surroundings["nobody"] = True
    for path in (case.folder.parent, case.folder):
        path.chmod(0o755)
    if case.inputs and case.rng.random() < 0.5:
        case.folder.chmod(0o777)
        old = case.rng.choice(case.inputs)
        target = case.folder / old
        if target.is_dir() and case.rng.random() < 0.5:
            target = case.rng.choice(sorted(target.rglob("*")))
        target.chmod(0)
        case.done.append(f"nobody may read {target.relative_to(case.folder)}")
    else:
        case.done.append("nobody may write here")


def stream(case: "Case") -> None:
    """A standard stream that is closed, full, or whose reader is gone."""
    number = case.rng.choice([0, 1, 1, 2, 2])
    how = case.rng.choice(["closed", "full", "broken pipe"]) if number else "closed"
    case.surroundings |= {"streams": {number: how}, "new": True}
    case.done.append(f"stream {number}: {how}")


def environment(case: "Case") -> None:
    """Odd variables."""
    changes: dict[str, Any] = case.rng.choice(ENVIRONMENTS)
    case.surroundings |= {"environment": changes, "new": True}
    case.done.append(json.dumps(changes))


def stop(case: "Case") -> None:
    """SIGTERM in the middle."""
    case.surroundings["stop_after"] = case.rng.choice(
        [0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5]
    ) * case.rng.uniform(0.5, 1.5)
    case.done.append(f"SIGTERM after {case.surroundings['stop_after']:.2f} s")
