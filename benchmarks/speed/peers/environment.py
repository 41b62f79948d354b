"""An environment for other people's trainers, `.peers/`, made on the first use: their pins aren't ours."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

import cetnet

FOLDER = Path(".peers")
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


@cache
def peers_python() -> str | None:
    """Its Python, or None if it can't be made, which is told on stderr.

    Wheels are looked for where PIP_FIND_LINKS or UV_FIND_LINKS says, too.
    """
    made, python = FOLDER / "made", FOLDER / "bin" / "python"
    wanted = f"torch=={torch.__version__.partition('+')[0]}\n{REQUIREMENTS.read_text(encoding='utf-8')}"
    if made.exists() and made.read_text(encoding="utf-8") == wanted:
        link_cetnet(FOLDER)
        return str(python)
    find_links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
    env = os.environ | {"UV_FIND_LINKS": find_links, "PIP_FIND_LINKS": find_links}
    uv = shutil.which("uv", path=f"{os.environ.get('PATH', '')}:.tools/bin")
    torch_pin = wanted.partition("\n")[0]
    if uv:
        commands = [
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)],
            [uv, "pip", "install", "--quiet", "--python", str(python), torch_pin, "-r", str(REQUIREMENTS)],
        ]
    else:
        commands = [
            [sys.executable, "-m", "venv", "--clear", str(FOLDER)],
            [str(python), "-m", "pip", "install", "--quiet", torch_pin, "-r", str(REQUIREMENTS)],
        ]
    print(f"{FOLDER}: installing {REQUIREMENTS.name}", file=sys.stderr)
    for command in commands:
        if subprocess.run(command, env=env, check=False).returncode:
            return None
    made.write_text(wanted, encoding="utf-8")
    link_cetnet(FOLDER)
    return str(python)


def link_cetnet(environment: Path) -> None:
    """Let an environment of our Python's version import `cetnet`, and nothing else that is installed beside it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    link = environment / "lib" / version / "site-packages" / "cetnet"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(cetnet.__file__).parent)
