"""What ends a command, in one line: of the user, a disk, a name server, a library's parser, or the program itself.

No imports but of the standard library: it must work where nothing else does.
"""

import errno
import os
import re
import shlex
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cetnet.trainer.errors import UserError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

FAILURE_FILE = "CETNET_FAILURE_FILE"
"""Variable that names a file for the line in which a command says why it failed; of several ranks the first does."""

_ANOTHER_PLACE = "name another place"
_REMEDIES = {
    errno.ENOSPC: "make room or repair the disk",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "make room for larger files (ulimit -f)",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close files: the machine has too many open",
    errno.EACCES: "give this user the right to it, or name another place",
    errno.EPERM: "give this user the right to it, or name another place",
    errno.EROFS: "it can only be read: name another place",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ENOENT: "name one that exists",
    errno.ENOTDIR: _ANOTHER_PLACE,
    errno.EISDIR: _ANOTHER_PLACE,
    errno.ELOOP: "its symbolic links lead in a circle: name another place",
    errno.EIO: "look after the disk",
    errno.ENOMEM: "give it more memory",
    errno.EAGAIN: "allow more processes or memory (ulimit -u, ulimit -v)",
    errno.ECONNREFUSED: "look whether it runs there",
    errno.EADDRINUSE: "end what uses it, or choose another port (MASTER_PORT)",
}
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "Cannot allocate memory")
# Whose errors are about what they were given to read: the first part of the names of their modules.
_PARSERS = {"polars", "pyarrow", "yaml", "pydantic", "pydantic_core", "json", "csv", "_csv", "zlib", "lzma"}
_PARSERS |= {"zipfile", "tarfile", "pyo3_runtime"}  # the last: a panic inside polars


def explain(error: BaseException) -> tuple[str, int]:
    """What happened and the remedy, in a line, and the exit code: 1 if it is the program's fault, else 2."""
    kind = type(error)
    name, text = kind.__name__, " ".join(str(error).split())
    named = f"{name}: {text}" if text else name
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
        return f"out of memory ({named}); give it more, or make batches, tables or --workers smaller", 2
    if isinstance(error, OSError):
        return _explain_os(error), 2
    if "Too many open files" in text:  # of gloo
        return f"{text}; {_REMEDIES[errno.EMFILE]}", 2
    if "can't start new thread" in text:
        return f"{text}; allow more processes or memory (ulimit -u, ulimit -v)", 2
    if isinstance(error, UnicodeError):
        return f"text or a name that cannot be read or written ({text}); write it as UTF-8", 2
    package = kind.__module__.split(".")[0]
    if package in _PARSERS or (isinstance(error, EOFError) and "ompressed" in text):
        return f"{package} cannot read what it was given ({named}); fix the file or the configuration", 2
    if kind.__module__.startswith("torch.") and name.startswith("Dist"):
        address = ":".join(os.environ.get(key, "") for key in ("MASTER_ADDR", "MASTER_PORT"))
        return (
            f"the processes cannot meet at {address} ({named}); look after the network, or the variables",
            2,
        )
    if _while_loading_a_library(error):
        line = (
            f"a library does not load ({named:.300}); look at its variables in the environment, or install "
        )
        return line + "cetnet again, into a fresh environment", 2
    if named_in_it := [word for word in _VARIABLE.findall(text) if word in os.environ]:
        return f"{text}; fix or unset {named_in_it[0]} in the environment", 2
    if isinstance(error, BrokenExecutor):
        return f"a process of this command was killed (out of memory?): {text}", 1
    return f"a fault of the program, {named}", 1


def _explain_os(error: OSError) -> str:
    places = [
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    ]
    if not places and _while_printing(error):
        places = ["standard output"]
    place = f"{' -> '.join(places)}: " if places else ""
    return f"{place}{reason(error)}; {remedy(error, 'fix that, and start it again')}"


def unwritable(path: Path, error: OSError, otherwise: str = _ANOTHER_PLACE) -> str:
    """What is said of a file or folder that the operating system doesn't let be written, and the remedy."""
    # Not "name one that exists": that is for what is read.
    what_to_do = _ANOTHER_PLACE if error.errno == errno.ENOENT else remedy(error, otherwise)
    return f"{path}: cannot be written ({reason(error)}); {what_to_do}"


def reason(error: OSError) -> str:
    """What an error of the operating system says, without the name of a file."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def remedy(error: OSError, otherwise: str) -> str:
    """What to do about an error of the operating system; `otherwise` where that isn't known."""
    if isinstance(error, socket.gaierror):
        return "look after the name, or the name server"
    return _REMEDIES.get(error.errno or 0, otherwise)


def _while_loading_a_library(error: BaseException) -> bool:
    if isinstance(error, ImportError):
        return not (error.name or "cetnet").startswith("cetnet")
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    loading = any(name.startswith("<frozen importlib") for name in files)
    return loading and "cetnet" not in Path(files[-1]).parts


def _while_printing(error: OSError) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(
        part in ("rich", "click", "_click") for part in Path(frames[-1].filename).parts
    )


def run_told(command: Callable[[], object]) -> None:
    """Be a command, and end with the exit code of what `tell` says of whatever escapes it."""
    try:
        command()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # polars' panics are no Exceptions
        sys.exit(tell(error))


def tell(error: BaseException) -> int:
    """Say in one line on stderr what ended the command, with the traceback in a file; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        return 1  # who read what this prints has gone
    line, code = explain(error)
    if not isinstance(error, UserError):
        line += f" ({_keep_traceback(error)})"
        if code == 1:
            line += "; please report it"
    say(line)
    if name := os.environ.get(FAILURE_FILE):
        with suppress(OSError), Path(name).open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")
    return code


def say(line: str) -> None:
    """Print one line on stderr, whatever became of that."""
    try:
        text = f"cetnet: {UserError(line)}".encode(sys.stderr.encoding, "backslashreplace")
        print(text.decode(sys.stderr.encoding), file=sys.stderr, flush=True)
    except (AttributeError, OSError, ValueError):  # there is none, it is full, it is closed
        return


def _keep_traceback(error: BaseException) -> str:
    """Where the traceback is: a new file for temporary ones or, if none can be written, its last frame."""
    text = "".join(traceback.format_exception(error))
    try:
        descriptor, name = tempfile.mkstemp(prefix="cetnet-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{shlex.join(sys.argv)}\npython {sys.version}\n\n{text}")
        return f"traceback: {name}"
    except OSError:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "cetnet" in Path(frame.filename).parts] or frames
        return f"at {ours[-1].filename}:{ours[-1].lineno}, {ours[-1].name}" if ours else "no traceback"


def install_hooks() -> None:
    """Make a line of what is raised in a thread, while objects are destroyed, and as the interpreter ends."""
    threading.excepthook = _tell_of_thread
    sys.unraisablehook = _tell_of_unraisable


def _tell_of_thread(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread, for which a disk is full, has its error raised by the next number that it is given."""
    if failure.exc_value is not None and not isinstance(failure.exc_value, OSError | SystemExit):
        tell(failure.exc_value)


def _tell_of_unraisable(failure: "UnraisableHookArgs") -> None:
    error = failure.exc_value
    if error is not None and not isinstance(error, OSError | KeyboardInterrupt | SystemExit):
        say(f"ignored: {type(error).__name__}: {error} ({failure.err_msg or 'in'} {failure.object!r:.200})")
