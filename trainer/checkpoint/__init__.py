"""Checkpoints: whole or absent, on a disk or in an object store, and loaded without running code from them."""
