"""What publishers say of a dataset: rows and vocabulary sizes, to compare with what was prepared."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """Counts of a published dataset.

    Attributes:
        source: where the counts stand.
        rows: by split.
        tables: rows of each embedding table, with one row for padding and one for values outside the vocabulary.
        total: rows of all tables, where the tables are not published one by one; each counts as in `tables`.
    """

    source: str
    rows: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    total: int | None = None
