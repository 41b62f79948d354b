"""InterFormer (Zeng et al., "InterFormer: Effective Heterogeneous Interaction Learning for Click-Through Rate
Prediction", arXiv 2411.09852 v4).

Where the paper is silent: a residual and a LayerNorm around every block, the gate X * sigmoid(Linear(X)),
rotary positions on all tokens with CLS first, and one more Cross Arch after the last layer, because the
classifier would otherwise never read what that layer computed.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.component import Component, Inputs, InputShape, Output
from models.dhen import DHENLayer, InteractionName, default_tokens_per_interaction
from models.layers.attention import PMA, RotaryAttention
from models.layers.config import TokenModelConfig
from models.layers.mlp import Activation, linear, mlp
from models.layers.tokens import DenseTokens, Readout, TokenLinear


class InterFormerConfig(TokenModelConfig):
    """Settings of InterFormer; defaults are the paper's for public datasets (section 5, app. B)."""

    kind: Literal["interformer"] = "interformer"
    num_layers: int = Field(2, ge=1, description="Layers, each a Cross, an Interaction and a Sequence Arch.")
    num_heads: int = Field(4, gt=0, description="Attention heads; each gets an even share of embedding_dim.")
    num_summary_tokens: int = Field(
        4,
        gt=0,
        description="Tokens n_sum that summarise the non-sequence tokens; also the number of CLS tokens.",
    )
    num_pma_tokens: int = Field(2, gt=0, description="Learned queries that pool the sequence by attention.")
    num_recent_tokens: int = Field(
        2, gt=0, description="Last events that the sequence's summary holds as is."
    )
    interactions: tuple[InteractionName, ...] = Field(
        ("dot", "dcn"),
        min_length=1,
        description="Interaction modules of the Interaction Arch (a DHEN layer).",
    )
    dot_hidden_units: tuple[int, ...] = Field(
        (512,), description="Hidden layers between the dot products and the tokens made of them."
    )

    @property
    def num_sequence_tokens(self) -> int:
        """Tokens n_S that summarise the sequences: CLS, PMA and recent ones."""
        return self.num_summary_tokens + self.num_pma_tokens + self.num_recent_tokens

    @model_validator(mode="after")
    def _check(self) -> "InterFormerConfig":
        if self.embedding_dim % (2 * self.num_heads):
            raise ValueError(f"embedding_dim must be a multiple of 2 * num_heads = {2 * self.num_heads}")
        return self


def align_recent(sequences: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Join k sequences on the embedding axis so that their most recent events share a position.

    Args:
        sequences: `[B, k, T, d]`, oldest first, left-aligned; what lies beyond a length is never read.
        lengths: `[B, k]`.

    Returns:
        `[B, T, k d]`, oldest first, left-aligned, zeros where a sequence has no event, and the lengths `[B]`,
        each the longest of its row's k.
    """
    longest = lengths.amax(dim=1)
    shift = longest.unsqueeze(1) - lengths  # [B, k]
    source = torch.arange(sequences.shape[2], device=lengths.device) - shift.unsqueeze(2)  # [B, k, T]
    valid = (source >= 0) & (source < lengths.unsqueeze(2))
    index = source.clamp(min=0).unsqueeze(3).expand_as(sequences)
    aligned = torch.where(valid.unsqueeze(3), sequences.gather(2, index), 0)
    return aligned.transpose(1, 2).flatten(2), longest


class MaskNet(nn.Module):
    """MLP_lce(S * MLP_mask(S)) at every position, `[B, T, k d]` -> `[B, T, d]` (eq. 6)."""

    def __init__(self, num_sequences: int, embedding_dim: int, activation: Activation) -> None:
        super().__init__()
        width = num_sequences * embedding_dim
        self.mask = mlp(width, (width,), activation)
        # A mask around 0 would square the scale of the embeddings, far below LayerNorm's eps: start around 1.
        last = linear(width, width)
        nn.init.ones_(last.bias)
        self.mask.append(last)
        self.lce = linear(width, embedding_dim)

    def forward(self, sequence: Tensor) -> Tensor:
        """`[B, T, k d]` -> `[B, T, d]`."""
        return self.lce(sequence * self.mask(sequence))


class Gating(nn.Module):
    """X * sigmoid(Linear(X)), position-wise, `[B, n, d]` -> `[B, n, d]`."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.linear = linear(embedding_dim, embedding_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, n, d]`."""
        return tokens * self.linear(tokens).sigmoid()


class TokenSummary(nn.Module):
    """Cross Arch, the non-sequence side: X_sum = Gating(LCE(X)), `[B, n, d]` -> `[B, n_sum, d]` (eq. 10)."""

    def __init__(self, num_tokens: int, num_summary_tokens: int, embedding_dim: int) -> None:
        super().__init__()
        self.lce = TokenLinear(num_tokens, num_summary_tokens)
        self.gating = Gating(embedding_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, n_sum, d]`."""
        return self.gating(self.lce(tokens))


class SequenceSummary(nn.Module):
    """Cross Arch, the sequence side: S_sum = Gating([S_CLS | S_PMA | S_recent]) (eq. 11).

    `[B, n_sum + T, d]` -> `[B, n_S, d]`. Recent tokens that a short history lacks are zeros.
    """

    def __init__(self, config: InterFormerConfig, embedding_dim: int) -> None:
        super().__init__()
        self.num_cls = config.num_summary_tokens
        self.num_recent = config.num_recent_tokens
        self.pma = PMA(config.num_pma_tokens, embedding_dim, config.num_heads)
        self.gating = Gating(embedding_dim)

    def forward(self, sequence: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """`[B, n_sum + T, d]`, mask `[B, 1, 1, n_sum + T]`, lengths `[B]` of the bodies -> `[B, n_S, d]`."""
        event = lengths.unsqueeze(1) + torch.arange(-self.num_recent, 0, device=lengths.device)  # [B, K]
        index = (self.num_cls + event.clamp(min=0)).unsqueeze(2).expand(-1, -1, sequence.shape[2])
        recent = torch.where(event.unsqueeze(2) >= 0, sequence.gather(1, index), 0)
        return self.gating(torch.cat([sequence[:, : self.num_cls], self.pma(sequence, mask), recent], dim=1))


class InteractionArch(nn.Module):
    """X^(l+1) = LN(X + LCE(Interaction([X | S_sum]))), the Interaction a DHEN layer (eq. 7)."""

    def __init__(
        self, num_tokens: int, num_sequence_tokens: int, embedding_dim: int, config: InterFormerConfig
    ) -> None:
        super().__init__()
        inputs = num_tokens + num_sequence_tokens
        self.interaction = DHENLayer(
            inputs,
            embedding_dim,
            config.interactions,
            default_tokens_per_interaction(inputs),
            "concat",
            config.dot_hidden_units,
            config.activation,
        )
        self.lce = TokenLinear(self.interaction.num_outputs, num_tokens)
        self.norm = nn.LayerNorm(embedding_dim)

    def forward(self, tokens: Tensor, sequence_summary: Tensor | None) -> Tensor:
        """`[B, n, d]` and, if there are sequences, `[B, n_S, d]` -> `[B, n, d]`."""
        inputs = tokens if sequence_summary is None else torch.cat([tokens, sequence_summary], dim=1)
        return self.norm(tokens + self.lce(self.interaction(inputs)))


class PFFN(nn.Module):
    """Personalised feed-forward network: every event times a matrix made from X_sum (eq. 8, app. A.2.2).

    The matrix X_sum^T W, d x d per sample, has rank n_sum: (S X_sum^T) W are two thin products instead. The
    first takes the dot products of events and summary tokens, as the paper reads its own equation.
    """

    def __init__(self, num_summary_tokens: int, embedding_dim: int) -> None:
        super().__init__()
        # Unit variance out of unit variance in; xavier_normal would give 2.7 times that.
        std = (num_summary_tokens * embedding_dim) ** -0.5
        self.weight = nn.Parameter(torch.randn(num_summary_tokens, embedding_dim) * std)

    def forward(self, token_summary: Tensor, sequence: Tensor) -> Tensor:
        """`[B, n_sum, d]`, `[B, L, d]` -> `[B, L, d]`."""
        return (sequence @ token_summary.transpose(1, 2)) @ self.weight


class SequenceArch(nn.Module):
    """S' = S + PFFN(LN X_sum, LN S); S^(l+1) = S' + MHA(LN S') (eq. 9). Shapes are kept."""

    def __init__(self, max_length: int, embedding_dim: int, config: InterFormerConfig) -> None:
        super().__init__()
        self.summary_norm = nn.LayerNorm(embedding_dim)
        self.pffn_norm = nn.LayerNorm(embedding_dim)
        self.pffn = PFFN(config.num_summary_tokens, embedding_dim)
        self.attention_norm = nn.LayerNorm(embedding_dim)
        self.attention = RotaryAttention(
            config.num_summary_tokens + max_length, embedding_dim, config.num_heads
        )

    def forward(self, sequence: Tensor, mask: Tensor, token_summary: Tensor) -> Tensor:
        """`[B, L, d]`, mask `[B, 1, 1, L]`, `[B, n_sum, d]` -> `[B, L, d]`."""
        sequence = sequence + self.pffn(self.summary_norm(token_summary), self.pffn_norm(sequence))
        return sequence + self.attention(self.attention_norm(sequence), mask)


class InterFormer(Component):
    """Interleaved learning of sequences and non-sequence tokens, each guided by the other's summary (Alg. 1).

    In every layer the Interaction Arch and the Sequence Arch run side by side, each reading the other side's
    summary of the same layer. Without sequences, only the Interaction Archs and the last summary remain.
    """

    Config = InterFormerConfig
    reads_sequences = True

    def __init__(self, shape: InputShape, config: InterFormerConfig) -> None:
        super().__init__()
        dim, k, layers = shape.embedding_dim, shape.num_sequences, config.num_layers
        self.inputs = DenseTokens(shape.num_tokens, shape.num_dense, dim, config.dense, config.activation)
        num_tokens, self.num_cls = self.inputs.num_tokens, config.num_summary_tokens

        self.mask_net = MaskNet(k, dim, config.activation) if k > 0 else None
        self.token_summaries = nn.ModuleList(
            TokenSummary(num_tokens, self.num_cls, dim) for _ in range(layers + 1 if k > 0 else 1)
        )
        self.sequence_summaries = nn.ModuleList(
            SequenceSummary(config, dim) for _ in range(layers + 1 if k > 0 else 0)
        )
        num_sequence_tokens = config.num_sequence_tokens if k > 0 else 0
        self.interaction_archs = nn.ModuleList(
            InteractionArch(num_tokens, num_sequence_tokens, dim, config) for _ in range(layers)
        )
        self.sequence_archs = nn.ModuleList(
            SequenceArch(shape.max_length, dim, config) for _ in range(layers if k > 0 else 0)
        )
        self.readout = Readout(self.num_cls + num_sequence_tokens, config)
        self.output_dim = self.readout.output_dim

    def forward(self, inputs: Inputs) -> Output:
        """Return the output embedding `[B, output_dim]` and the logit `[B]`."""
        x = self.inputs(inputs.tokens, inputs.dense)
        if self.mask_net is None:
            for interaction_arch in self.interaction_archs:
                x = interaction_arch(x, None)
            return self.readout(self.token_summaries[0](x))

        body, lengths = align_recent(inputs.sequences, inputs.lengths)
        # CLS tokens may always be read, so that no row of the attention is empty even without a history.
        position = torch.arange(self.num_cls + body.shape[1], device=lengths.device)
        mask = (position < self.num_cls + lengths.unsqueeze(1))[:, None, None]  # [B, 1, 1, n_sum + T]

        x_sum = self.token_summaries[0](x)
        s = torch.cat([x_sum, self.mask_net(body)], dim=1)  # [B, n_sum + T, d]
        s_sum = self.sequence_summaries[0](s, mask, lengths)
        for interaction_arch, sequence_arch, summarise_tokens, summarise_sequence in zip(
            self.interaction_archs,
            self.sequence_archs,
            self.token_summaries[1:],
            self.sequence_summaries[1:],
            strict=True,
        ):
            x, s = interaction_arch(x, s_sum), sequence_arch(s, mask, x_sum)
            x_sum, s_sum = summarise_tokens(x), summarise_sequence(s, mask, lengths)
        return self.readout(torch.cat([x_sum, s_sum], dim=1))
