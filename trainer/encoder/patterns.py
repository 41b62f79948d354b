"""How integers, floats and lists are written as text: regular expressions for polars' and Arrow's engines."""

import re
from collections.abc import Collection

INTEGER = r"^-?[0-9]+$"
WHOLE_FLOAT = r"^(-?[0-9]+)\.0*$"
# Of an id beyond 53 bits, most of whose digits are not its own.
LOSSY_FLOAT = r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]+$"
FORMS = {"integer": INTEGER, "whole": WHOLE_FLOAT}


def other_form(forms: Collection[str]) -> tuple[str, str] | None:
    """A pattern of ids that may be known ones, written otherwise, and what is expected; None if there is none.

    `forms`: those of FORMS that the known ones have.
    """
    if "integer" in forms and "whole" not in forms:
        return WHOLE_FLOAT, "ids written as 17, as in training, not as 17.0"
    if "whole" in forms and "integer" not in forms:
        return INTEGER, "ids written as 17.0, as in training, not as 17"
    return None


def written_list(separator: str) -> str:
    """A pattern of lists, tuples, sets and mappings as Python, numpy, JSON and Postgres write them.

    [x] and (x) may be values, as (not set) is.
    """
    several = rf".*(?:[,\s'\"]|{re.escape(separator)}).*"
    return rf"(?s)^\s*(\[\s*\]|\[\s*-?[0-9.]+\s*\]|\[{several}\]|\(.*,.*\)|\{{\s*\}}|\{{.*[,'\"].*\}})\s*$"
