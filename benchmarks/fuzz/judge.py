"""What a command's end says: fine, refused in one line, or a failure of some kind."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from cetnet.benchmarks.fuzz.command import Command, Ended
from cetnet.trainer.errors import printable

_EVERYWHERE = (
    "processes/launcher.py",
    "trainer/cli.py",
    "fuzz/command.py",
    "fuzz/workers.py",
    "fuzz/__main__.py",
)
_STOPPED = (75, 143, -signal.SIGTERM)
_SEEN = {
    "traceback": "Traceback (most recent call last)",
    "exception ignored": "Exception ignored",
    "C++ exception": "terminate called",
    "panic": "panicked at",
}
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_FRAME = re.compile(
    r'File "[^"]*/cetnet/((?:trainer|models|sharding|launch|benchmarks)/[^"]+\.py)", line (\d+),? in (\S+)'
)


@dataclass(frozen=True)
class Failure:
    """What went wrong: its kind, and the signature that others of the same cause share."""

    kind: str
    signature: str


def failures_of_end(command: Command, ended: Ended) -> list[Failure]:
    """What can be told from how it ended and what it printed."""
    found = []
    said = ended.stdout + ended.stderr
    if ended.hung:
        return [Failure("hang", _frame(ended.stderr, newest=0))]
    for kind, text in _SEEN.items():
        if text in said:
            found.append(Failure(kind, _signature(said[said.index(text) :])))
    stopped = command.stop_after is not None
    if ended.code < 0 and not (stopped and ended.code == -signal.SIGTERM):
        found.append(
            Failure("signal", f"{signal.Signals(-ended.code).name} {_frame(ended.stderr, newest=0)}")
        )
    elif ended.code not in _codes(command) and not found and 2 not in command.streams:
        found.append(Failure(f"exit code {ended.code}", _normal(_last_line(said))))
    if ended.stopping is not None and ended.stopping > 15:
        found.append(Failure("slow to stop", " ".join(command.arguments[:2])))
    if ended.left:
        found.append(Failure("left running", _normal(ended.left[0])))
    if ended.code == 2 and not found:
        found += _message(command, ended.stderr)
    return found


def _codes(command: Command) -> set[int]:
    """The exit codes that mean something."""
    stopped = _STOPPED if command.stop_after is not None else ()
    unread = (1,) if command.streams.get(1) == "broken pipe" else ()  # as click has it
    return {0, 2, *stopped, *unread}


def _message(command: Command, stderr: str) -> list[Failure]:
    """A refusal is one line that names a file, a key or an option; or the box of a usage error."""
    if command.streams.get(2):
        return []
    stderr = _ESCAPES.sub("", stderr)
    if "Usage: " in stderr:
        return []
    lines = [line for line in stderr.splitlines() if line.strip()]
    if not lines or not lines[-1].startswith("cetnet: "):
        return [Failure("message", f"not the last line: {_normal(_last_line(stderr))}")]
    said = lines[-1].removeprefix("cetnet: ")
    names = {
        part for argument in command.arguments for part in re.split(r"[/=\s]", argument) if len(part) > 1
    }
    names |= {printable(argument) for argument in command.arguments if len(argument) > 1 or argument == "/"}
    names |= {path.name for path in command.folder.rglob("*")} | set(command.environment)
    if not any(name in said for name in names) and not re.search(r"--\w|\w\.\w+|\w=|'[^']+'", said):
        return [Failure("message", f"names nothing: {_normal(said)}")]
    if len(said) < 15:
        return [Failure("message", f"says little: {said}")]
    return []


def _signature(text: str) -> str:
    """Innermost frame of ours, and the exception, of a traceback."""
    lines = [re.sub(r"^\[rank\d+\]: ?", "", line) for line in text.splitlines()]
    last = next((line for line in lines[1:] if re.match(r"[A-Za-z_][\w.]*(: |$)", line)), "")
    return f"{_frame(text)} {_normal(last)}"


def _frame(text: str, newest: int = -1) -> str:
    """A traceback has the newest call last, faulthandler first."""
    frames = [frame for frame in _FRAME.findall(text) if not frame[0].endswith(_EVERYWHERE)]
    path, line, function = frames[newest] if frames else ("", "", "")
    return f"{path}:{line} {function}"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "(nothing printed)"


def _normal(line: str) -> str:
    """Without what differs from case to case."""
    line = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "'…'", line)
    line = re.sub(r"\S*/\S+", "PATH", line)
    return re.sub(r"\d+", "N", line)[:160]


def leftovers(before: frozenset[Path], folder: Path) -> list[Path]:
    """Unfinished files that a command left."""
    names = re.compile(r"\.tmp$|\.[0-9a-f]{8}\.tmp|^\..*\.(work|tmp)$")
    return sorted(
        path.relative_to(folder) for path in set(folder.rglob("*")) - before if names.search(path.name)
    )
