"""Slurm: a cluster on one machine, and TorchX's scheduler for it."""
