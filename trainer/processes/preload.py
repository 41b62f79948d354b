"""Importing this loads what a run needs, as far as it does load: what doesn't, a run says itself."""

from contextlib import suppress

from cetnet.trainer.console import quieten
from cetnet.trainer.processes.launcher import load_libraries

quieten()
with suppress(Exception):
    load_libraries()
