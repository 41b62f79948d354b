"""Configuration of CETNet, without its code: checking a file must not wait for torchrec to load."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator

from models.component import ComponentConfig
from models.registry import component_class

FusionMode = Literal["confidence_concat", "confidence_sum", "concat", "mean"]


# Other columns of a predictions file.
_TAKEN = ("fused", "row", "label", "weight", "group", "true_probability")


class CETNetConfig(BaseModel):
    """An ensemble; with one component it is that single model, with neither fusion nor KL term."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    components: dict[str, SerializeAsAny[ComponentConfig]] = Field(
        min_length=1, description="Components by the names that tables and metrics carry; each has a `kind`."
    )
    fusion: FusionMode = Field(
        "confidence_concat",
        description="How output embeddings become one: concatenated or summed, weighted by each sample's "
        "confidence or (concat, mean) not.",
    )
    stop_gradient: bool = Field(True, description="Treat the confidence weights as constants (paper, 3.4).")
    kl_weight: float = Field(
        0.5, ge=0, description="alpha of the symmetric KL term; the paper tunes it among 0.1, 0.5, 1."
    )
    kl_detach: bool = Field(
        False, description="Treat the other component as a constant in each KL direction."
    )

    @field_validator("components", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        configs = {}
        for name, settings in value.items():
            if not str(name).isidentifier() or "__" in name or name in _TAKEN:
                raise ValueError(
                    f"component name {name!r} must be an identifier without '__' and none of {', '.join(_TAKEN)}"
                )
            if isinstance(settings, dict):
                if "kind" not in settings:
                    raise ValueError(f"component {name!r} has no kind")
                settings = component_class(settings["kind"]).Config.model_validate(settings)
            configs[name] = settings
        return configs
