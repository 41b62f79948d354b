"""How the memory of all that is measured is allocated."""

# glibc maps large blocks anew at each malloc, and faults their pages in again, unless told to keep them.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
