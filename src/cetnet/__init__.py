"""CETNet on TorchRec. The import root: its rooms are the folders at the top of the repository, linked here."""

__version__ = "0.2.0"
