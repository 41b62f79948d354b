"""Training under random faults, compared with the same run undisturbed."""
