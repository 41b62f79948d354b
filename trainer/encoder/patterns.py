"""How integers, floats and lists are written as text: regular expressions for polars' and Arrow's engines."""

import re

INTEGER = r"^-?[0-9]+$"
WHOLE_FLOAT = r"^(-?[0-9]+)\.0*$"
# Of an id beyond 53 bits, most of whose digits are not its own.
LOSSY_FLOAT = r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]+$"


def written_list(separator: str) -> str:
    """A pattern of lists, tuples, sets and mappings as Python, numpy, JSON and Postgres write them.

    [x] and (x) may be values, as (not set) is.
    """
    several = rf".*(?:[,\s'\"]|{re.escape(separator)}).*"
    return rf"(?s)^\s*(\[\s*\]|\[\s*-?[0-9.]+\s*\]|\[{several}\]|\(.*,.*\)|\{{\s*\}}|\{{.*[,'\"].*\}})\s*$"
