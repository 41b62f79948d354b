"""The base of everything that a person writes and the program reads: experiment files, schemas, studies."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Unknown keys, NaN and infinity are refused, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
