"""From raw values to what a model reads, with numpy and pyarrow alone.

An exported model has a copy of this folder beside it, so nothing here imports anything of this package but itself.
"""
