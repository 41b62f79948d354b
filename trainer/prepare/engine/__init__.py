"""What prepares a dataset of any size from raw files: out of core, resumable, the same bytes each time."""
