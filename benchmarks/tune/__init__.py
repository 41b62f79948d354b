"""`cetnet tune`: settings for the variants of a study, chosen on validation with an equal budget for each."""
