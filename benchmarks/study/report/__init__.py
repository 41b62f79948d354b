"""The report of a study: numbers, sections, plots."""
