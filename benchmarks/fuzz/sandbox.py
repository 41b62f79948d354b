"""A world of its own for the commands: nothing outside one folder can be written, no network but the loopback."""

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

_INSIDE = "CETNET_FUZZ_FOLDER"
_FLAGS = ["--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
_SIOCSIFFLAGS, _IFF_UP, _SIZE = 0x8914, 0x1, "4g"
_PR_SET_CHILD_SUBREAPER = 36


def enter(out: Path) -> Path | None:
    """Be this program again inside of namespaces; the folder that is its own there, or None where that is refused.

    The folder is a tmpfs that is gone with the program. Beside it only `out` can be written.
    """
    if folder := os.environ.pop(_INSIDE, None):
        _close_the_doors(Path(folder), out)
        return Path(folder)
    namespaces = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), *_FLAGS]
    if not shutil.which("unshare") or subprocess.run([*namespaces, "true"], capture_output=True).returncode:
        return None
    folder = mkdtemp(prefix="cetnet-fuzz-")
    command = [sys.executable, "-P", "-m", "cetnet.benchmarks.fuzz", *sys.argv[1:]]
    try:
        sys.exit(subprocess.run([*namespaces, *command], env={**os.environ, _INSIDE: folder}).returncode)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        Path(folder).rmdir()


def _close_the_doors(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    mount("--bind", str(out), str(out))
    mount("-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder))
    for point in ("/", "/dev/shm"):
        subprocess.run(["mount", "-o", "remount,bind,ro", point] if point == "/" else ["true"], check=True)
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def mount(*arguments: str) -> None:
    """Run `mount`; raises CalledProcessError if it is refused."""
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def unmount(folder: Path) -> None:
    """Take away what is mounted there."""
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def adopt_orphans() -> None:
    """Become the parent of processes whose own has ended, so that they are seen."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
