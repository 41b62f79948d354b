"""torch, fbgemm-gpu and torchrec must be of one release: the field's most common failure, caught at once."""

import importlib
from importlib.metadata import PackageNotFoundError, version

from cetnet.trainer.errors import UserError


def installed_versions() -> dict[str, str]:
    """Versions of torch, fbgemm-gpu (whichever build) and torchrec; `not installed` where missing."""
    fbgemm = [name for name in ("fbgemm-gpu-cpu", "fbgemm-gpu") if _version(name) != "not installed"]
    return {
        "torch": _version("torch"),
        "fbgemm-gpu": " and ".join(f"{_version(name)} ({name})" for name in fbgemm) or "not installed",
        "torchrec": _version("torchrec"),
    }


def check_versions() -> None:
    """Raise UserError with the three versions and the remedy unless they belong together."""
    if problem := version_problem(installed_versions()):
        raise _wrong_installation(problem)


def check_loading() -> None:
    """Raise UserError, as `check_versions` does, if fbgemm-gpu does not load; it loads torch."""
    try:
        importlib.import_module("fbgemm_gpu")
    except (ImportError, OSError) as error:
        if "failed to map segment" in str(error):
            raise UserError(f"not enough memory to load torch ({error}); allow more (ulimit -v)") from error
        raise _wrong_installation(f"fbgemm-gpu does not load ({str(error).splitlines()[0]})") from error


def _wrong_installation(problem: str) -> UserError:
    have = ", ".join(f"{name} {value}" for name, value in installed_versions().items())
    return UserError(
        f"{problem}; installed: {have}; remedy: a fresh environment with torch 2.13, torchrec 1.8 and either "
        "fbgemm-gpu-cpu 1.8 or fbgemm-gpu 1.8 (or torch 2.14 and 1.9 of the others), as "
        "`uv pip install '.[cpu]'` or `'.[cuda]'` makes it"
    )


def version_problem(versions: dict[str, str]) -> str | None:
    """What is wrong with these versions, or None: torch 2.N goes with fbgemm-gpu and torchrec 1.(N - 5)."""
    for name, value in versions.items():
        if value == "not installed":
            return f"{name} is not installed"
    if " and " in versions["fbgemm-gpu"]:
        return "both builds of fbgemm-gpu are installed and overwrite each other"
    torch_release = _release(versions["torch"])
    wanted = (1, torch_release[1] - 5) if torch_release[0] == 2 else None
    for name in ("fbgemm-gpu", "torchrec"):
        if wanted != _release(versions[name]):
            return f"{name} does not belong to this torch"
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _release(value: str) -> tuple[int, int]:
    major, minor = value.split(".")[:2]
    return int(major), int(minor)
