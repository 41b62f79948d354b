"""A report as Markdown, as one HTML file, and its tables on a terminal."""
