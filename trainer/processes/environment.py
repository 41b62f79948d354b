"""What the environment says of this process among others, as torchrun does; without torch."""

import os

from cetnet.trainer.errors import UserError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_REMEDY = "start the processes with torchrun, or unset RANK for a process alone"


def world_size() -> int:
    """Number of processes, known before the process group exists."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1


def check_threads() -> None:
    """Raise UserError for a number of threads at which polars panics as it is imported."""
    value = os.environ.get("POLARS_MAX_THREADS")
    if value and not (value.isascii() and value.isdigit() and int(value)):
        raise UserError(f"POLARS_MAX_THREADS={value!r} is not a number of 1 or more; fix it, or unset it")


def check_environment() -> None:
    """Raise UserError if RANK is set and the variables that go with it are not whole or contradict each other.

    Without RANK this process is alone, and what is left of them from elsewhere is dropped.
    """
    if "RANK" not in os.environ:
        for name in VARIABLES:
            os.environ.pop(name, None)
        return
    if missing := [name for name in VARIABLES if not os.environ.get(name)]:
        raise UserError(f"RANK is set but {', '.join(sorted(missing))} not; {_REMEDY}")
    numbers = {}
    for name in VARIABLES:
        value = os.environ[name]
        if name != "MASTER_ADDR":
            if not (value.isascii() and value.isdigit()):
                raise UserError(f"{name}={value} is not a number of 0 or more; {_REMEDY}")
            numbers[name] = int(value)
    for name, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if numbers[name] >= numbers[size]:
            raise UserError(f"{name}={numbers[name]} is not below {size}={numbers[size]}; {_REMEDY}")
    if numbers["LOCAL_WORLD_SIZE"] > numbers["WORLD_SIZE"]:
        here, all_of_them = numbers["LOCAL_WORLD_SIZE"], numbers["WORLD_SIZE"]
        raise UserError(f"LOCAL_WORLD_SIZE={here} is more than WORLD_SIZE={all_of_them}; {_REMEDY}")
    if not 0 < numbers["MASTER_PORT"] < 65536:
        raise UserError(f"MASTER_PORT={numbers['MASTER_PORT']} is no port; give one of 1 to 65535")
