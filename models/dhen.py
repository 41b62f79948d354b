"""DHEN (Zhang et al., "DHEN: A Deep and Hierarchical Ensemble Network", arXiv 2203.11014)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.layers.config import TokenModelConfig
from cetnet.models.layers.mlp import Activation, linear, mlp
from cetnet.models.layers.products import InnerProducts
from cetnet.models.layers.tokens import DenseTokens, Readout, TokenLinear

InteractionName = Literal["dot", "dcn", "attention", "linear", "convolution"]
Ensemble = Literal["concat", "sum", "weighted_sum"]


class DHENConfig(TokenModelConfig):
    """Settings of DHEN."""

    kind: Literal["dhen"] = "dhen"
    num_layers: int = Field(2, ge=1, description="Layers; each raises the order of the interactions.")
    interactions: tuple[InteractionName, ...] = Field(
        ("dot", "dcn"), min_length=1, description="Interaction modules that every layer ensembles."
    )
    tokens_per_interaction: int | None = Field(
        None, gt=0, description="Tokens l that each module outputs. Default: the input tokens, at most 16."
    )
    ensemble: Ensemble = Field(
        "concat",
        description="How a layer joins its N modules: `concat` to l N tokens, `sum` to l, `weighted_sum` with a "
        "learned weight per module, 1 at the start.",
    )
    dot_hidden_units: tuple[int, ...] = Field(
        (512,), description="Hidden layers between the dot products and the tokens made of them."
    )


def default_tokens_per_interaction(num_tokens: int) -> int:
    """As many tokens as come in, but at most 16: the weights of `dcn` grow with the square of tokens x d."""
    return min(num_tokens, 16)


class Dot(nn.Module):
    """Dot products of all pairs of tokens, through an MLP: `[B, m, d]` -> `[B, l, d]`.

    A lone token has a product with itself only.
    """

    def __init__(
        self,
        num_tokens: int,
        num_outputs: int,
        embedding_dim: int,
        hidden_units: Sequence[int],
        activation: Activation,
    ) -> None:
        super().__init__()
        self.products = InnerProducts(num_tokens, with_self=num_tokens == 1)
        num_products = self.products.num_outputs
        self.mlp = mlp(num_products, hidden_units, activation)
        self.mlp.append(linear((num_products, *hidden_units)[-1], num_outputs * embedding_dim))
        self.mlp.append(nn.Unflatten(1, (num_outputs, embedding_dim)))

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, m, d]` -> `[B, l, d]`."""
        return self.mlp(self.products(tokens))


class Cross(nn.Module):
    """DCN's cross of the flattened tokens, x * (W x + b): `[B, m, d]` -> `[B, l, d]`.

    Its own skip connection is left out: the layer's shortcut is one.
    """

    def __init__(self, num_tokens: int, num_outputs: int, embedding_dim: int) -> None:
        super().__init__()
        self.cross = linear(num_tokens * embedding_dim, num_tokens * embedding_dim)
        self.compress = TokenLinear(num_tokens, num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, m, d]` -> `[B, l, d]`."""
        return self.compress(tokens * self.cross(tokens.flatten(1)).view_as(tokens))


def start_linear_maps(module: nn.Module) -> None:
    """Let PyTorch's own linear maps, convolutions and attention inside `module` start as `linear` does."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class SelfAttention(nn.Module):
    """A standard transformer encoder layer over the tokens: `[B, m, d]` -> `[B, l, d]`."""

    def __init__(self, num_tokens: int, num_outputs: int, embedding_dim: int) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(
            embedding_dim, nhead=1, dim_feedforward=4 * embedding_dim, dropout=0.0, batch_first=True
        )
        start_linear_maps(self.encoder)
        self.compress = TokenLinear(num_tokens, num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, m, d]` -> `[B, l, d]`."""
        # The encoder's own forward changes shapes in a way that torch.export finds to depend on whether B is 1.
        layer, attention = self.encoder, self.encoder.self_attn
        projected = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = (part.unsqueeze(1) for part in projected.chunk(3, dim=2))
        attended = attention.out_proj(F.scaled_dot_product_attention(query, key, value).squeeze(1))
        x = layer.norm1(tokens + attended)
        x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
        return self.compress(x)


class Convolution(nn.Module):
    """A 5 x 5 convolution of the m x d "image" of tokens: `[B, m, d]` -> `[B, l, d]`."""

    def __init__(self, num_tokens: int, num_outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, kernel_size=5, padding=2)
        start_linear_maps(self)
        self.compress = TokenLinear(num_tokens, num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, m, d]` -> `[B, l, d]`."""
        return self.compress(self.convolution(tokens.unsqueeze(1)).squeeze(1))


class DHENLayer(nn.Module):
    """X_{n+1} = LN(Ensemble_i(Interaction_i(X_n)) + ShortCut(X_n)), `[B, m, d]` -> `[B, num_outputs, d]`.

    Each of the N modules makes l tokens; they are concatenated on the token axis or summed, each with its weight
    if `weighted_sum`. ShortCut is the identity if that leaves the number of tokens unchanged, else a linear map on
    the token axis.
    """

    def __init__(
        self,
        num_tokens: int,
        embedding_dim: int,
        interactions: Sequence[InteractionName],
        tokens_per_interaction: int,
        ensemble: Ensemble,
        dot_hidden_units: Sequence[int],
        activation: Activation,
    ) -> None:
        super().__init__()
        outputs = tokens_per_interaction

        def interaction(name: InteractionName) -> nn.Module:
            if name == "dot":
                return Dot(num_tokens, outputs, embedding_dim, dot_hidden_units, activation)
            if name == "dcn":
                return Cross(num_tokens, outputs, embedding_dim)
            if name == "attention":
                return SelfAttention(num_tokens, outputs, embedding_dim)
            if name == "convolution":
                return Convolution(num_tokens, outputs)
            return TokenLinear(num_tokens, outputs)

        self.ensemble = ensemble
        self.interactions = nn.ModuleList(interaction(name) for name in interactions)
        self.num_outputs = outputs * len(interactions) if ensemble == "concat" else outputs
        self.weights = nn.Parameter(torch.ones(len(interactions))) if ensemble == "weighted_sum" else None
        self.shortcut = (
            nn.Identity() if num_tokens == self.num_outputs else TokenLinear(num_tokens, self.num_outputs)
        )
        self.norm = nn.LayerNorm(embedding_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, m, d]` -> `[B, num_outputs, d]`."""
        outputs = [interaction(tokens) for interaction in self.interactions]  # N times [B, l, d]
        if self.ensemble == "concat":
            joined = torch.cat(outputs, dim=1)
        else:
            stacked = torch.stack(outputs, dim=3)  # [B, l, d, N]
            joined = stacked.sum(3) if self.weights is None else stacked @ self.weights
        return self.norm(joined + self.shortcut(tokens))


class DHENLayers(nn.Sequential):
    """Layers one on the other, with the further `settings` of `DHENLayer`: `[B, m, d]` -> `[B, num_outputs, d]`."""

    def __init__(self, num_layers: int, num_tokens: int, *settings: Any) -> None:
        super().__init__()
        self.num_outputs = num_tokens
        for _ in range(num_layers):
            layer = DHENLayer(self.num_outputs, *settings)
            self.append(layer)
            self.num_outputs = layer.num_outputs


class DHEN(Component):
    """Layers that each ensemble several kinds of interaction; histories enter as their means (section 3)."""

    Config = DHENConfig

    def __init__(self, shape: InputShape, config: DHENConfig) -> None:
        super().__init__()
        self.inputs = DenseTokens(shape, config)
        num_tokens = self.inputs.num_tokens
        # One l for all layers, so that concatenation widens the tokens once and not at every layer.
        outputs = config.tokens_per_interaction or default_tokens_per_interaction(num_tokens)
        self.layers = DHENLayers(
            config.num_layers,
            num_tokens,
            shape.embedding_dim,
            config.interactions,
            outputs,
            config.ensemble,
            config.dot_hidden_units,
            config.activation,
        )
        self.readout = Readout(self.layers.num_outputs, config)
        self.output_dim = self.readout.output_dim

    def forward(self, inputs: Inputs) -> Output:
        """Return the output embedding `[B, output_dim]` and the logit `[B]`."""
        return self.readout(self.layers(self.inputs(inputs.tokens, inputs.dense)))
