"""How a measurement is told: what was found in several rounds, and on which machine."""

import os
import platform
from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float], form: str) -> str:
    """Median, and lowest to highest, each by a format such as `.1f`."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def machine() -> str:
    """Cores and operating system."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}"
