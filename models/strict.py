"""The base of everything that a person writes and the program reads: experiment files, schemas, studies."""

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Unknown keys, NaN and infinity are refused, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, content: Any) -> Any:
        if isinstance(content, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in content:
                if key not in known:
                    near = get_close_matches(str(key), known, n=1)
                    help = f"did you mean {near[0]}?" if near else f"keys here: {', '.join(known)}"
                    # A name of its own, by which a message can name the key where it stands.
                    context = {"key": str(key), "help": help}
                    raise PydanticCustomError("unknown_key", "unknown key {key}; {help}", context)
        return content
