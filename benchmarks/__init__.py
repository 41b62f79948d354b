"""Studies: variants x seeds, their table and their plots."""
