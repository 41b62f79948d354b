"""Rules that a run must keep and that are checked in several places: each returns a complaint, or None.

Imports neither torch nor torchrec.
"""

from collections.abc import Collection

_MANAGED_OPTIMIZERS = ("rowwise_adagrad", "sgd")
# FBGEMM's `legacy_max_embedding_dim`. Beyond it another kernel looks rows up, which has returned zeros (torchrec
# issue 3673), and beyond 2,048, its `max_embedding_dim`, it refuses. The kernels for CPUs know no limit.
_WIDEST_ON_CUDA = 1024


def indivisible(
    *, batch_size: int, lanes: int | None, world_size: int = 1, ranks: str | None = None
) -> str | None:
    """What is not a multiple of what, and the keys to set: the ranks divide the lanes, and these the batch.

    Args:
        batch_size: rows of a step, of all ranks.
        lanes: `data.lanes`; None where rows are read in order, which the ranks divide among themselves.
        world_size: number of ranks.
        ranks: what to call them; `the 8 processes` by default.
    """
    ranks = ranks or f"the {world_size:,} processes"
    if lanes is not None and lanes % world_size:
        why, divisor = f"data.lanes={lanes} is not a multiple of {ranks}", world_size
        remedy = [f"data.lanes={world_size}"]
    elif batch_size % (lanes or world_size):
        divisor, remedy = lanes or world_size, []
        of = ranks if lanes is None else f"data.lanes={lanes}"
        why = f"data.batch_size={batch_size} is not a multiple of {of}"
    else:
        return None
    nearest = max(divisor, batch_size // divisor * divisor)
    if nearest != batch_size:
        remedy.insert(0, f"data.batch_size={nearest}")
    return f"{why}; set {' '.join(remedy)}"


def width_refused(table: str, columns: int, *, on_cuda: bool) -> str | None:
    """Why a table, by its full name, can't be looked up in shards of so many columns."""
    if not on_cuda or columns <= _WIDEST_ON_CUDA:
        return None
    return (
        f"table {table} has vectors of {columns:,} numbers, and FBGEMM's CUDA kernels may return zeros beyond "
        f"{_WIDEST_ON_CUDA:,}; make embedding_dim smaller (copies: 2 gives a component two tables), let "
        "sharding.constraints split the table column_wise, or name it in sharding.dense_tables"
    )


def managed_table_refused(table: str, rows: int, *, dense: bool, lanes: int) -> str | None:
    """Why a table can't have managed collision: `table` is its full name, `dense` whether it is held whole."""
    if dense:
        return f"table {table} has managed collision and can't be in sharding.dense_tables"
    if rows % lanes:
        return f"table {table} has managed collision and {rows} rows, which must be a multiple of data.lanes={lanes}"
    return None


def managed_sharding_refused(table: str, allowed: Collection[str]) -> str | None:
    """Why a table with managed collision can't be sharded by the types that its constraint allows."""
    if "row_wise" in allowed:
        return None
    return (
        f"sharding.constraints: table {table!r} has managed collision and can be row_wise only, not "
        f"{', '.join(allowed)}"
    )


def managed_lanes_refused(*, lanes: int, world_size: int) -> str | None:
    """Why tables with managed collision, cut into as many parts as there are lanes, can't be on so many ranks."""
    if lanes % world_size == 0:
        return None
    return (
        f"data.lanes={lanes} is not a multiple of the {world_size} processes, which tables with "
        "managed_collision need; change one of them"
    )


def managed_training_refused(
    tables: Collection[str], *, schema_file: object, nonfinite: str, sparse_optimizer: str, on_cpu: bool
) -> str | None:
    """Why a run can't train tables with managed collision; None too if there are none.

    Args:
        tables: their names in the schema, which is in `schema_file`.
        nonfinite: `training.nonfinite`.
        sparse_optimizer: `optimizer.sparse.kind`.
        on_cpu: whether the device is the CPU.
    """
    if not tables:
        return None
    if nonfinite == "skip":
        return (
            "training.nonfinite=skip cannot leave a step out with managed_collision, which gives rows to new ids "
            "before the step is judged; use training.nonfinite=stop"
        )
    if on_cpu:
        return (
            f"{schema_file}: tables with managed_collision train on CUDA only, and the device here is the CPU; "
            f"name {', '.join(tables)} in hashed instead"
        )
    # FBGEMM forgets the optimizer's state of a row that changes hands for the first alone; sgd has none.
    if sparse_optimizer not in _MANAGED_OPTIMIZERS:
        return (
            f"optimizer.sparse.kind={sparse_optimizer} can't train tables with managed_collision; use "
            f"{' or '.join(_MANAGED_OPTIMIZERS)}"
        )
    return None
