"""Importing this loads what a run needs, as far as it does load: what doesn't, a run says itself."""

import signal
from contextlib import suppress

from cetnet.trainer.console import quieten
from cetnet.trainer.processes.launcher import FROM_TERMINAL, end_with_parent, load_libraries
from cetnet.trainer.processes.signals import SIGNALS

end_with_parent(signal.SIGKILL)  # also while it loads; its forks don't

# Those who signal a group of processes mean the runs; were their server to end, nobody would know how they did.
for _number in (*SIGNALS, *FROM_TERMINAL):
    signal.signal(_number, signal.SIG_IGN)

quieten()
with suppress(Exception):
    load_libraries()
