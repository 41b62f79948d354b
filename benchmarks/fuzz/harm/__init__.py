"""Harm that is done to files and to what is around a command."""
