"""How a process keeps the memory of its host."""

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 1 GiB for the next step, which needs as many again.

    By default it maps a large block at each malloc, whose pages are then faulted in and zeroed, and unmaps it when it
    is freed.
    """
    libc = ctypes.CDLL(None)
    # Older ones take 32 MiB at most.
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25)
    libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(_M_TOP_PAD, 1 << 26)
    libc.mallopt(_M_ARENA_MAX, 1)  # those of other threads are small heaps, beyond which they map blocks
