"""Settings that several components share."""

from typing import Literal

from pydantic import Field
from torch import nn

from cetnet.models.component_config import ComponentConfig
from cetnet.models.layers.mlp import Activation, mlp

DenseMode = Literal["field", "token"]
ReadoutMode = Literal["hidden", "tokens"]


class MLPConfig(ComponentConfig):
    """Settings of the components that have an MLP."""

    hidden_units: tuple[int, ...] = Field(
        (512, 256, 128), min_length=1, description="Sizes of the hidden layers of each MLP."
    )
    activation: Activation = Field("relu", description="Activation of the MLPs.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout after each hidden layer.")
    batch_norm: bool = Field(False, description="BatchNorm in the MLPs; statistics are each rank's own.")
    dense: DenseMode = Field(
        "field",
        description="Dense features become tokens: `field` = each is one token, its value times a learned "
        "vector; `token` = an MLP on all of them makes one token.",
    )

    def mlp(self, num_features: int) -> nn.Sequential:
        """The MLP of these settings, `[rows, num_features]` -> `[rows, hidden_units[-1]]`."""
        return mlp(num_features, self.hidden_units, self.activation, self.dropout, self.batch_norm)


class FieldModelConfig(MLPConfig):
    """Settings of the components on flattened field embeddings; defaults are FuxiCTR's, for parity with BARS."""

    embedding_std: float = Field(1e-4, gt=0, description="Embeddings start from N(0, std); 1e-4 as in BARS.")


class TokenModelConfig(MLPConfig):
    """Settings that every component ending in interaction tokens has (DHEN, InterFormer, Wukong)."""

    dense: DenseMode = Field(
        "token",
        description="Dense features become tokens: `token` = an MLP on all of them makes one token; "
        "`field` = each is one token, its value times a learned vector.",
    )
    readout: ReadoutMode = Field(
        "hidden",
        description="Output embedding: `hidden` = last hidden layer of the top MLP (the fused logit is "
        "linear in it, hence as strong as the component's own); `tokens` = the flattened final tokens.",
    )
    hidden_units: tuple[int, ...] = Field(
        (1024, 512, 256, 128), min_length=1, description="Sizes of the hidden layers of the top MLP."
    )
    activation: Activation = Field("silu", description="Activation of every MLP; silu is the papers' Swish.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout after each hidden layer of the top MLP.")
    batch_norm: bool = Field(False, description="BatchNorm in the top MLP; statistics are each rank's own.")
