"""The feature schema: which columns a model reads, and which embedding table each id looks up.

Imports neither torch nor torchrec, so that configuration errors are found in milliseconds.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cetnet.models.names import FeatureName, TableName
from cetnet.models.strict import Strict

_MANAGED_IDS = 2**62  # so many that two ids of a table hardly ever collide
FeatureKind = Literal["categorical", "multi_valued", "sequence", "dense"]


class Feature(Strict):
    """One input column.

    | kind         | Parquet column     | the model sees                                             |
    |--------------|--------------------|------------------------------------------------------------|
    | categorical  | int                | one embedding                                              |
    | multi_valued | list of int        | the mean of the embeddings (zeros for an empty list)       |
    | sequence     | list of int, oldest first | the embeddings in order, at most `max_length`, or their mean |
    | dense        | float              | the number                                                 |
    """

    name: FeatureName = Field(description="Column name in the Parquet files.")
    kind: FeatureKind
    table: TableName | None = Field(
        None, description="Embedding table the ids look up; features may share one. Default: the name."
    )
    max_length: int | None = Field(
        None, gt=0, le=1 << 20, description="Sequences only: the longest one allowed."
    )
    mean_length: float = Field(
        1.0, ge=0, le=1 << 20, description="Mean number of ids per row: the planner's pooling factor."
    )
    behavior: str | None = Field(
        None,
        description="Sequences only: the list of events that this is a column of. Sequences of one behavior "
        "are aligned position by position. Default: all sequences are one.",
    )

    @model_validator(mode="after")
    def _check(self) -> "Feature":
        if self.kind == "dense" and self.table is not None:
            raise ValueError(f"feature {self.name!r} is dense and cannot have a table")
        if (self.kind == "sequence") != (self.max_length is not None):
            raise ValueError(f"feature {self.name!r}: max_length belongs to sequences, which must have it")
        if self.behavior is not None and self.kind != "sequence":
            raise ValueError(f"feature {self.name!r}: behavior belongs to sequences")
        if self.kind != "dense" and self.table is None:
            object.__setattr__(self, "table", self.name)
        return self


class Schema(Strict):
    """Columns of a prepared dataset (`schema.yaml`).

    `tables` maps each embedding table to its number of rows; every id of a feature is in
    `[0, num_embeddings)`, unless its table is in `id_ranges`. By convention of `cetnet prepare`, id 0 stands for
    missing or unseen values.
    """

    label: str = Field(description="Column with 0 or 1.")
    group: str | None = Field(
        None, description="Integer column; gAUC is computed within each of its values. A null is in none."
    )
    timestamp: str | None = Field(None, description="Integer column, seconds; orders a time split.")
    weight: str | None = Field(None, description="Float column: the row's weight in losses and metrics.")
    true_probability: str | None = Field(
        None, description="Float column, synthetic data only: the probability the label was drawn from."
    )
    tables: dict[TableName, Annotated[int, Field(le=1 << 40)]] = Field(
        description="Number of rows (num_embeddings) of each table."
    )
    pretrained: dict[TableName, Annotated[int, Field(gt=0, le=1 << 20)]] = Field(
        default_factory=dict,
        description="Tables of given vectors, which are not trained, and the size of a vector. The dataset has "
        "them in `pretrained/<table>.npy`, float32 `[rows, size]`.",
    )
    hashed: tuple[str, ...] | None = Field(
        None,
        description="Tables without a vocabulary. Columns that read them hold integers or text of any value, which "
        "are hashed to rows 1, 2, ... as they are read; null and the empty text are row 0, a null list is empty.",
    )
    managed_collision: tuple[str, ...] | None = Field(
        None,
        description="Tables without a vocabulary, of columns as those of `hashed`, that give an id a row of its own "
        "when training first sees it, and take it from ids long unseen (TorchRec's MPZCH). They train on CUDA only.",
    )
    vocabularies: dict[str, str] | None = Field(
        None,
        description="Digests of the values that `cetnet prepare` gave the rows of tables, in their order "
        "(`vocabularies/<table>.parquet`): data that a run scores, or goes on with, must have those of its own.",
    )
    encoding: str | None = Field(
        None,
        description="Digest of what else turned raw values into these ids and numbers (`encoding.yaml`): as with the "
        "vocabularies, it must be that of the run.",
    )
    features: tuple[Feature, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Schema":
        names = [feature.name for feature in self.features]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"features named twice: {', '.join(duplicates)}")
        self._check_roles(names)
        for feature in self.features:
            if feature.table is not None and feature.table not in self.tables:
                raise ValueError(f"feature {feature.name!r} reads table {feature.table!r}, not in tables")
        if not self.id_features:
            raise ValueError("no feature looks up a table; at least one must")
        for table, rows in self.tables.items():
            if rows < 1:
                raise ValueError(f"table {table!r} has {rows} rows")
        if unknown := sorted(set(self.pretrained) - set(self.tables)):
            raise ValueError(f"pretrained tables that are not in tables: {', '.join(unknown)}")
        if unknown := sorted(set(self.id_ranges) - set(self.tables)):
            raise ValueError(
                f"hashed or managed_collision tables that are not in tables: {', '.join(unknown)}"
            )
        kinds = [*(self.hashed or ()), *(self.managed_collision or ()), *self.pretrained]
        for table in self.id_ranges:
            if self.tables[table] < 2:
                raise ValueError(f"hashed table {table!r} needs two rows at least: row 0 is for missing ids")
            if kinds.count(table) > 1:
                raise ValueError(
                    f"table {table!r} is more than one of hashed, managed_collision and pretrained"
                )
        if unread := sorted(set(self.tables) - {feature.table for feature in self.features}):
            raise ValueError(f"tables that no feature reads: {', '.join(unread)}")
        for feature in self.id_features:
            if f"{feature.name}__extra" in self.tables:
                raise ValueError(
                    f"table '{feature.name}__extra' has the name of a table that components may make for feature "
                    f"{feature.name!r}; rename it"
                )
        return self

    def _check_roles(self, features: list[str]) -> None:
        """No column means two things, but that group and timestamp may be one, and features, too."""
        meanings: dict[str, list[str]] = {}
        for role in ("label", "weight", "true_probability", "group", "timestamp"):
            if (column := getattr(self, role)) is not None:
                meanings.setdefault(column, []).append(role)
        for column, roles in meanings.items():
            others = roles[1:] + ["a feature"] * (column in features)
            if others and roles[0] in ("label", "weight", "true_probability"):
                raise ValueError(
                    f"column {column!r} is both {roles[0]} and {others[0]}; a column means one thing: name another "
                    "column, or leave one of the two out"
                )

    def of_kind(self, *kinds: FeatureKind) -> list[Feature]:
        """Features of these kinds, in the schema's order."""
        return [feature for feature in self.features if feature.kind in kinds]

    @property
    def id_features(self) -> list[Feature]:
        """Features that look up a table, in the schema's order: the keys of the KeyedJaggedTensor."""
        return self.of_kind("categorical", "multi_valued", "sequence")

    @property
    def list_features(self) -> list[Feature]:
        """Features with any number of ids a row, in the schema's order."""
        return self.of_kind("multi_valued", "sequence")

    @property
    def dense_features(self) -> list[Feature]:
        """Dense features, in the schema's order: the columns of `Batch.dense`."""
        return self.of_kind("dense")

    @property
    def id_ranges(self) -> dict[str, int]:
        """Tables whose columns hold ids of any value, and into how many these are hashed as they are read."""
        hashed = {table: self.tables.get(table, 0) for table in self.hashed or ()}
        return hashed | dict.fromkeys(self.managed_collision or (), _MANAGED_IDS)

    @property
    def hashed_features(self) -> list[Feature]:
        """Features whose columns hold ids of any value, in the schema's order."""
        ranges = self.id_ranges
        return [feature for feature in self.id_features if feature.table in ranges]
