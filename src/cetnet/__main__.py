"""Entry point of `cetnet`, and of `python -P -m cetnet`, which has nothing of the working directory on its path.

It imports little until whatever goes wrong from then on can be told in a line.
"""

import gc
import os
import signal
import sys


def main() -> None:
    """Be the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # An exception could come anywhere in a library that loads, or wait for C++ to return. Who has to clean up
        # takes the signal then.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_standard_streams()
    _use_utf8()
    from cetnet.trainer.failures import tell

    try:
        try:
            from cetnet.trainer.cli import main as command_line

            command_line()
        finally:
            _flush()
            gc.freeze()  # else Python ends with a second's search for cycles in all that the libraries have made
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except SystemExit:
        raise
    except BaseException as error:
        sys.exit(tell(error))


def _open_standard_streams() -> None:
    """Open those that are closed: the next files would get their numbers, and what libraries write to them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode if texts or the names of files would be written otherwise."""
    encodings = [sys.getfilesystemencoding(), sys.stdout.encoding, sys.stderr.encoding]
    if any(name.lower().replace("-", "") != "utf8" for name in encodings) and (
        os.environ.get("PYTHONUTF8") != "1" and sys.executable
    ):
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # Names of files that aren't UTF-8 are printed, too.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _flush() -> None:
    """Write what is still to be written, as the interpreter would, with a traceback, when it ends."""
    failed = getattr(sys.exc_info()[1], "code", 0)  # of SystemExit; and has said so
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not failed and not isinstance(error, BrokenPipeError):
            error.filename = "standard output"
            raise


if __name__ == "__main__":
    sys.argv[0] = "cetnet"
    main()
