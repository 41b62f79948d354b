"""The processes of a run: how they start, talk, are told to stop, and notice one that hangs."""
