"""Exporting a run's model, and scoring with what was exported."""
