"""Python runs this at start-up where PYTHONPATH names its folder: SIGNAL comes as the module STOP_AT is imported.

To the process or, with GROUP, to its whole group.
"""

import importlib.abc
import os
import sys
from typing import Any


class Stopper(importlib.abc.MetaPathFinder):
    """Finds nothing, but signals."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:  # noqa: ARG002
        """Leave it to others, who may come no more to it."""
        if name == os.environ["STOP_AT"]:
            number = int(os.environ["SIGNAL"])
            if "GROUP" in os.environ:
                os.killpg(os.getpgrp(), number)
            else:
                os.kill(os.getpid(), number)


if "STOP_AT" in os.environ:
    sys.meta_path.insert(0, Stopper())
