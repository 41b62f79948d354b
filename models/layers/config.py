"""Settings that several components share."""

from typing import Literal

from pydantic import Field

from cetnet.models.component import ComponentConfig
from cetnet.models.layers.mlp import Activation

DenseMode = Literal["field", "token"]
ReadoutMode = Literal["hidden", "tokens"]


class FieldModelConfig(ComponentConfig):
    """Settings of the components on flattened field embeddings; defaults are FuxiCTR's, for parity with BARS."""

    embedding_std: float = Field(1e-4, gt=0, description="Embeddings start from N(0, std); 1e-4 as in BARS.")
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


class TokenModelConfig(ComponentConfig):
    """Settings that every component ending in interaction tokens has (DHEN, InterFormer)."""

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
