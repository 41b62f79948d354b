"""Waiting for what other processes do."""

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], what: str, seconds: float = 400) -> None:
    """Wait until a condition holds, or fail, saying what it was."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} seconds still not: {what}"
        time.sleep(0.1)
