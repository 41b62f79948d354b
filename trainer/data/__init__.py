"""Datasets, and the reader that gives every row once, in an order that no number of processes changes."""
