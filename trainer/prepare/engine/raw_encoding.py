"""What turned the raw rows of a dataset into its own, beside the vocabularies: `encoding.yaml`."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from cetnet.models.names import FeatureName, TableName
from cetnet.models.strict import Strict
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.yaml_files import read_model

FILE = "encoding.yaml"


class RawEncoding(Strict):
    """How raw rows become ids and numbers; of datasets that `prepare_table` made.

    Tables of `raw` that are neither hashed nor have given rows have a vocabulary in `vocabularies/<table>.parquet`,
    those of given vectors among them.
    """

    raw: RawSchema = Field(description="The raw columns, without paths.")
    moments: dict[FeatureName, tuple[float, float]] = Field(
        {}, description="Mean and standard deviation of the features with the transform standardize."
    )
    lowest: float | None = Field(
        None,
        description="The m of log_from_lowest, train's: log(max(x, m) - m + 2), a missing x being 0.",
    )
    forms: dict[TableName, tuple[Literal["integer", "whole", "lossy"], ...]] = Field(
        {}, description="How hashed tables' ids are written that are numbers: as 17, 17.0 or 1.7e+18."
    )
    transform: str | None = Field(
        None,
        description="A function of a public dataset's reader, by its dotted name: `raw` has columns that it gives.",
    )

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all that changes a number: not of names, a CSV file's form or min_counts."""
        features = {
            feature.name: {
                "transform": feature.transform,
                "hash_function": feature.hash_function if feature.hash is not None else None,
                "keep": feature.keep if feature.kind == "sequence" else None,
            }
            for feature in self.raw.features
        }
        numbers = {
            "features": features,
            "null_values": sorted(set(self.raw.null_values)),
            "whole_floats": self.raw.whole_floats,
            "separator": self.raw.separator,
            **self.model_dump(mode="json", include={"moments", "lowest", "transform"}),
        }
        return sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write `encoding.yaml` in a folder."""
        content = self.model_dump(mode="json", exclude_none=True)
        content["raw"]["quote"] = self.raw.quote  # the one key for which null is no default
        (folder / FILE).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "RawEncoding | None":
        """That of a dataset or a run; None where there is none. Every mistake in it is a UserError."""
        return read_model(folder / FILE, cls) if (folder / FILE).exists() else None
