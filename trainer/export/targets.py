"""The forms of an exported model, what they need, found before torch is imported, and how they are made quietly."""

import logging
import os
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

from cetnet.trainer.errors import UserError

Target = Literal["pt2", "aoti", "onnx"]
FILES: dict[Target, str] = {"pt2": "model.pt2", "aoti": "model.aoti.pt2", "onnx": "model.onnx"}


def cpp_compiler(wanted_for: str) -> str:
    """The C++ compiler that is taken: g++, or what CXX names; raises UserError if it doesn't run."""
    compiler = os.environ.get("CXX", "g++")
    try:
        subprocess.run(
            [compiler, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"{wanted_for} needs a C++ compiler, and {compiler!r} does not run: install g++, name one in CXX, or "
            "leave it out"
        ) from error
    return compiler


def check_onnx() -> None:
    """Raise UserError unless what writes and tries ONNX is installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"the target onnx needs {', '.join(missing)}: install cetnet's extra [onnx], or leave it out"
        )


@contextmanager
def without_remarks() -> Iterator[None]:
    """Without what torch has to say of itself while it exports: what it deprecates, what else could be installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
