"""Rules for names that users choose, each of which becomes part of a module's, a column's, a file's or a key's name.

Imports neither torch nor torchrec.
"""

import re
from typing import Annotated

from pydantic import AfterValidator

_LONGEST = 100  # a file's name of several of them stays below 255 bytes
# Columns beside the components'.
_PREDICTIONS = ("fused", "row", "label", "weight", "group", "true_probability")
_OWNERS = ("shared", "pretrained")  # of tables that are no component's
_REPORTED = (".html", ".md", ".csv", ".png", ".svg")  # files beside the folders of variants


def _feature_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or len(name) > _LONGEST:
        raise ValueError(
            f"{quoted(name)} can't be a feature's name, which has letters (A to Z), digits and _, no digit first, "
            f"and has {_LONGEST} characters at most; rename it"
        )
    return name


def _table_name(name: str) -> str:
    if not name.strip() or not name.isprintable() or set(name) & set("./") or name.startswith("#"):
        raise ValueError(
            f"{quoted(name)} can't be a table's name, which is one line of text without . and /, no # first; "
            "rename it"
        )
    if len(name) > _LONGEST or len(name.encode()) > 2 * _LONGEST:
        raise ValueError(f"{quoted(name)} is too long for a table's name: {_LONGEST} characters at most")
    return name


def component_name(name: str) -> str:
    """A component's name, which its tables, outputs, metrics and modules carry; raises ValueError for others."""
    if not name.isidentifier() or "__" in name or name.endswith("_") or len(name) > _LONGEST:
        raise ValueError(
            f"{quoted(name)} can't be a component's name, which has letters, digits and single _, no digit first, no "
            f"_ last, and {_LONGEST} characters at most; rename it"
        )
    if name in (*_PREDICTIONS, *_OWNERS):
        raise ValueError(
            f"{name!r} can't be a component's name, since predictions or tables have it: none of "
            f"{', '.join((*_PREDICTIONS, *_OWNERS))}; rename it"
        )
    return name


def _split_name(name: str) -> str:
    if not name.strip() or not name.isprintable() or "/" in name or name[0] in "._":
        raise ValueError(
            f"{quoted(name)} can't be a split's name, a folder of the dataset: one line of text without / that "
            "begins with neither . nor _"
        )
    if len(name) > _LONGEST // 2:
        raise ValueError(f"{quoted(name)} is too long for a split's name: {_LONGEST // 2} characters at most")
    return name


def _variant_name(name: str) -> str:
    usable = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name) and not name.lower().endswith(_REPORTED)
    if not usable or len(name) > _LONGEST:
        raise ValueError(
            f"{quoted(name)} can't be a folder of runs: its name begins with a letter or a digit, has letters "
            f"(A to Z), digits and _ . + - only, {_LONGEST} characters at most, and doesn't end like a report's file "
            "(.html, .csv); rename it"
        )
    return name


def quoted(name: str) -> str:
    """A name in quotes, cut short if it is long."""
    return repr(name if len(name) <= _LONGEST else f"{name[:40]}...")


ComponentName = Annotated[str, AfterValidator(component_name)]
FeatureName = Annotated[str, AfterValidator(_feature_name)]
TableName = Annotated[str, AfterValidator(_table_name)]
SplitName = Annotated[str, AfterValidator(_split_name)]
VariantName = Annotated[str, AfterValidator(_variant_name)]
"""Of a study or a variant of it, whose runs are in a folder of that name."""
