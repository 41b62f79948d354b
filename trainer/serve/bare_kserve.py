"""KServe's Python server without what its package imports for other purposes."""

import importlib.util
import sys


def import_without_client() -> None:
    """Let modules of kserve be imported without its `__init__`.

    That one imports a client of Kubernetes, with a class for each of its resources (73 MB, 1.4 s), and a module that
    parses this command's arguments as its own. What serves needs neither.
    """
    spec = importlib.util.find_spec("kserve")
    if spec is not None and "kserve" not in sys.modules:
        sys.modules["kserve"] = importlib.util.module_from_spec(spec)
