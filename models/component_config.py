"""The settings that every component has. Imports neither torch nor torchrec."""

from pydantic import BaseModel, Field, model_validator

from cetnet.models.strict import Strict

_LARGEST_LAYER = 1 << 20
_MOST_LAYERS = 1000


class ComponentConfig(Strict):
    """Settings that every component has; each component's own `Config` extends it."""

    kind: str = Field(
        description="Name of the component, a key of `cetnet.models.registry.COMPONENTS`, or the dotted path of a "
        "class in an installed package."
    )
    embedding_dim: int = Field(32, gt=0, description="Size d of every embedding of this component.")
    embedding_std: float = Field(
        0.05,
        gt=0,
        le=1e6,
        description="Embeddings start from N(0, std). Far below 0.01, LayerNorm's eps drowns the signal.",
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> "ComponentConfig":
        check_sizes(self)
        return self


def check_sizes(config: BaseModel) -> None:
    """Refuse what no machine can build: sizes of layers, and their number, out of all proportion.

    Raises:
        ValueError: naming the key.
    """
    for name, value in config:
        counts = name.startswith("num_") or name.endswith("_layers")
        largest = _MOST_LAYERS if counts else _LARGEST_LAYER
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number > largest:
                raise ValueError(f"{name}: {number} is more than {largest:,}")
            if isinstance(value, tuple) and isinstance(number, int) and number < 1:
                raise ValueError(f"{name}: {number} is no size of a layer")
