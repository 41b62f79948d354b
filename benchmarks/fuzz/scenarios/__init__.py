"""Commands, each with its files, and what must come of it."""
