"""InterFormer (Zeng et al., "InterFormer: Effective Heterogeneous Interaction Learning for Click-Through Rate
Prediction", arXiv 2411.09852 v4).

Where the paper is silent, the default is what re-implementations agree on, and other readings are settings. One
thing is always added: one more Cross Arch after the last layer, because the classifier would otherwise never
read what that layer computed.
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
        description="Interaction modules of the Interaction Arch, a DHEN layer; [dcn] is the paper's DCNv2, [dot] "
        "its dot product.",
    )
    dot_hidden_units: tuple[int, ...] = Field(
        (512,), description="Hidden layers between the dot products and the tokens made of them."
    )

    pffn: Literal["dot", "mixture", "hypernetwork"] = Field(
        "dot",
        description="Matrix of the personalised FFN, from the summary X_sum. `dot`: W^T X_sum, dot products with "
        "the summary tokens. `mixture`: X_sum^T W, mixtures of them (the paper's equation to the letter). "
        "`hypernetwork`: an MLP on X_sum makes it, as two factors of rank num_summary_tokens.",
    )
    gating: Literal["sigmoid", "identity"] = Field(
        "sigmoid", description="Gate of the Cross Arch: X * sigmoid(Linear(X)) or X * Linear(X)."
    )
    residual: bool = Field(
        True, description="A residual and a LayerNorm around every block; the paper mentions neither."
    )
    pooled_tokens: bool = Field(False, description="The means of the histories are non-sequence tokens too.")
    sequence_join: Literal["aligned", "separate"] = Field(
        "aligned",
        description="`aligned`: sequences are joined on the embedding axis, the most recent events side by side. "
        "`separate`: each behavior has a MaskNet, and their events follow each other by recency.",
    )
    rotary_cls: bool = Field(
        True, description="Rotary positions count the CLS tokens; false: they start at the first event."
    )
    pma_keys: Literal["all", "body"] = Field(
        "all", description="PMA reads the whole sequence, or the events without the CLS tokens."
    )
    share_cross_arch: bool = Field(False, description="One Cross Arch for all layers.")

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


def mean_of_events(sequences: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the valid positions, `[B, k, T, d]` and `[B, k]` -> `[B, k, d]`; zeros where there is none."""
    beyond = torch.arange(sequences.shape[2], device=lengths.device) >= lengths.unsqueeze(2)
    total = sequences.masked_fill(beyond.unsqueeze(3), 0).sum(2)
    return total / lengths.clamp(min=1).unsqueeze(2)


def merge_by_recency(events: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Put the events of several behaviors into one sequence, by how many of their own came after.

    Args:
        events: `[B, b, T, d]`, oldest first, left-aligned.
        lengths: `[B, b]`.

    Returns:
        `[B, b T, d]`, oldest first, left-aligned, ending with the last event of each behavior, and the lengths `[B]`.
    """
    batch, num_behaviors, longest, dim = events.shape
    age = lengths.unsqueeze(2) - 1 - torch.arange(longest, device=lengths.device)  # [B, b, T]
    rank = torch.arange(num_behaviors, device=lengths.device).view(1, -1, 1) - age * num_behaviors
    order = (
        rank.masked_fill(age < 0, num_behaviors).flatten(1).argsort(dim=1, stable=True)
    )  # padding comes last
    merged = events.reshape(batch, -1, dim).gather(1, order.unsqueeze(2).expand(-1, -1, dim))
    return merged, lengths.sum(1)


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
        mask = self.mask(sequence.flatten(0, 1)).view_as(sequence)
        return self.lce(sequence * mask)


class Gating(nn.Module):
    """X * sigmoid(Linear(X)), or without the sigmoid, position-wise, `[B, n, d]` -> `[B, n, d]`."""

    def __init__(self, embedding_dim: int, kind: Literal["sigmoid", "identity"] = "sigmoid") -> None:
        super().__init__()
        self.linear = linear(embedding_dim, embedding_dim)
        self.activation = nn.Sigmoid() if kind == "sigmoid" else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, n, d]`."""
        return tokens * self.activation(self.linear(tokens))


class TokenSummary(nn.Module):
    """Cross Arch, the non-sequence side: X_sum = Gating(LCE(X)), `[B, n, d]` -> `[B, n_sum, d]` (eq. 10)."""

    def __init__(self, num_tokens: int, config: InterFormerConfig) -> None:
        super().__init__()
        self.lce = TokenLinear(num_tokens, config.num_summary_tokens)
        self.gating = Gating(config.embedding_dim, config.gating)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, n_sum, d]`."""
        return self.gating(self.lce(tokens))


class SequenceSummary(nn.Module):
    """Cross Arch, the sequence side: S_sum = Gating([S_CLS | S_PMA | S_recent]) (eq. 11).

    `[B, n_sum + T, d]` -> `[B, n_S, d]`. Recent tokens that a short history lacks are zeros, and so is what PMA
    reads of none, if it reads the events only.
    """

    def __init__(self, config: InterFormerConfig) -> None:
        super().__init__()
        self.num_cls = config.num_summary_tokens
        self.num_recent = config.num_recent_tokens
        self.reads_cls = config.pma_keys == "all"
        self.pma = PMA(config.num_pma_tokens, config.embedding_dim, config.num_heads)
        self.gating = Gating(config.embedding_dim, config.gating)

    def forward(self, sequence: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """`[B, n_sum + T, d]`, mask `[B, 1, 1, n_sum + T]`, lengths `[B]` of the bodies -> `[B, n_S, d]`."""
        event = lengths.unsqueeze(1) + torch.arange(-self.num_recent, 0, device=lengths.device)  # [B, K]
        index = (self.num_cls + event.clamp(min=0)).unsqueeze(2).expand(-1, -1, sequence.shape[2])
        recent = torch.where(event.unsqueeze(2) >= 0, sequence.gather(1, index), 0)
        if self.reads_cls:
            pooled = self.pma(sequence, mask)
        else:
            is_event = torch.arange(sequence.shape[1], device=lengths.device) >= self.num_cls
            empty = (lengths == 0)[:, None, None]
            # Attention to nothing would be NaN: rows without events read CLS, and forget it.
            pooled = self.pma(sequence, mask & (is_event | empty.unsqueeze(1)))
            pooled = pooled.masked_fill(empty, 0)
        return self.gating(torch.cat([sequence[:, : self.num_cls], pooled, recent], dim=1))


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
        self.norm = nn.LayerNorm(embedding_dim) if config.residual else None

    def forward(self, tokens: Tensor, sequence_summary: Tensor | None) -> Tensor:
        """`[B, n, d]` and, if there are sequences, `[B, n_S, d]` -> `[B, n, d]`."""
        inputs = tokens if sequence_summary is None else torch.cat([tokens, sequence_summary], dim=1)
        output = self.lce(self.interaction(inputs))
        return output if self.norm is None else self.norm(tokens + output)


class PFFN(nn.Module):
    """Personalised feed-forward network: every event times a matrix made from X_sum (eq. 8, app. A.2.2).

    The matrix, d x d per sample, has rank n_sum, and is never formed: its two thin factors are applied one after the
    other. `dot` takes the dot products of events and summary tokens, as the paper reads its own equation.
    """

    def __init__(self, config: InterFormerConfig) -> None:
        super().__init__()
        self.kind = config.pffn
        rank, dim = config.num_summary_tokens, config.embedding_dim
        # Unit variance out of unit variance in; xavier_normal would give 2.7 times that.
        self.scale = (rank * dim) ** -0.5
        self.weight: nn.Parameter | None = None
        self.mlp: nn.Sequential | None = None
        if config.pffn == "hypernetwork":
            self.mlp = mlp(rank * dim, (rank * dim,), config.activation)
            self.mlp.append(linear(rank * dim, 2 * rank * dim))
            self.mlp.append(nn.Unflatten(1, (2, rank, dim)))
        else:
            self.weight = nn.Parameter(torch.randn(rank, dim) * self.scale)

    def forward(self, token_summary: Tensor, sequence: Tensor) -> Tensor:
        """`[B, n_sum, d]`, `[B, L, d]` -> `[B, L, d]`."""
        if self.mlp is not None:
            first, second = (self.scale * self.mlp(token_summary.flatten(1))).unbind(1)
            return (sequence @ first.transpose(1, 2)) @ second
        assert self.weight is not None
        if self.kind == "mixture":
            return (sequence @ self.weight.T) @ token_summary
        return (sequence @ token_summary.transpose(1, 2)) @ self.weight


class SequenceArch(nn.Module):
    """S' = S + PFFN(LN X_sum, LN S); S^(l+1) = S' + MHA(LN S') (eq. 9). Shapes are kept.

    Without residual, S^(l+1) = MHA(PFFN(X_sum, S)).
    """

    def __init__(self, max_length: int, config: InterFormerConfig) -> None:
        super().__init__()
        dim, num_cls = config.embedding_dim, config.num_summary_tokens
        self.residual = config.residual
        self.summary_norm = nn.LayerNorm(dim) if config.residual else nn.Identity()
        self.pffn_norm = nn.LayerNorm(dim) if config.residual else nn.Identity()
        self.pffn = PFFN(config)
        self.attention_norm = nn.LayerNorm(dim) if config.residual else nn.Identity()
        self.attention = RotaryAttention(
            num_cls + max_length, dim, config.num_heads, first_position=0 if config.rotary_cls else num_cls
        )

    def forward(self, sequence: Tensor, mask: Tensor, token_summary: Tensor) -> Tensor:
        """`[B, L, d]`, mask `[B, 1, 1, L]`, `[B, n_sum, d]` -> `[B, L, d]`."""
        projected = self.pffn(self.summary_norm(token_summary), self.pffn_norm(sequence))
        if not self.residual:
            return self.attention(projected, mask)
        sequence = sequence + projected
        return sequence + self.attention(self.attention_norm(sequence), mask)


class SequenceInput(nn.Module):
    """The preprocessing of the sequences: one body of events `[B, T', d]` and its lengths `[B]` (section 3.2)."""

    def __init__(self, shape: InputShape, config: InterFormerConfig) -> None:
        super().__init__()
        self.groups = [list(range(shape.num_sequences))]
        if config.sequence_join == "separate":
            self.groups = [list(behavior.sequences) for behavior in shape.behaviors]
        self.mask_nets = nn.ModuleList(
            MaskNet(len(group), shape.embedding_dim, config.activation) for group in self.groups
        )
        self.max_length = shape.max_length * len(self.groups)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """`Inputs` -> `[B, T', d]`, oldest first, left-aligned, and `[B]`."""
        joined = [align_recent(inputs.sequences[:, g], inputs.lengths[:, g]) for g in self.groups]
        bodies = [mask_net(body) for mask_net, (body, _) in zip(self.mask_nets, joined, strict=True)]
        if len(bodies) == 1:
            return bodies[0], joined[0][1]
        return merge_by_recency(torch.stack(bodies, dim=1), torch.stack([n for _, n in joined], dim=1))


class InterFormer(Component):
    """Interleaved learning of sequences and non-sequence tokens, each guided by the other's summary (Alg. 1).

    In every layer the Interaction Arch and the Sequence Arch run side by side, each reading the other side's
    summary of the same layer. Without sequences, only the Interaction Archs and the last summary remain.
    """

    Config = InterFormerConfig
    reads_sequences = True

    def __init__(self, shape: InputShape, config: InterFormerConfig) -> None:
        super().__init__()
        dim, k, self.num_layers = shape.embedding_dim, shape.num_sequences, config.num_layers
        self.pooled_tokens = config.pooled_tokens
        self.inputs = DenseTokens(
            shape.num_tokens + (k if config.pooled_tokens else 0),
            shape.num_dense,
            dim,
            config.dense,
            config.activation,
        )
        num_tokens, self.num_cls = self.inputs.num_tokens, config.num_summary_tokens

        self.sequence_input = SequenceInput(shape, config) if k > 0 else None
        summaries = 1 if config.share_cross_arch or k == 0 else config.num_layers + 1
        self.token_summaries = nn.ModuleList(TokenSummary(num_tokens, config) for _ in range(summaries))
        self.sequence_summaries = nn.ModuleList(
            SequenceSummary(config) for _ in range(summaries if k > 0 else 0)
        )
        num_sequence_tokens = config.num_sequence_tokens if k > 0 else 0
        self.interaction_archs = nn.ModuleList(
            InteractionArch(num_tokens, num_sequence_tokens, dim, config) for _ in range(config.num_layers)
        )
        self.sequence_archs = nn.ModuleList()
        if self.sequence_input is not None:
            for _ in range(config.num_layers):
                self.sequence_archs.append(SequenceArch(self.sequence_input.max_length, config))
        self.readout = Readout(self.num_cls + num_sequence_tokens, config)
        self.output_dim = self.readout.output_dim

    def forward(self, inputs: Inputs) -> Output:
        """Return the output embedding `[B, output_dim]` and the logit `[B]`."""
        tokens = inputs.tokens
        if self.pooled_tokens:
            tokens = torch.cat([tokens, mean_of_events(inputs.sequences, inputs.lengths)], dim=1)
        x = self.inputs(tokens, inputs.dense)
        if self.sequence_input is None:
            for interaction_arch in self.interaction_archs:
                x = interaction_arch(x, None)
            return self.readout(self.token_summaries[0](x))

        body, lengths = self.sequence_input(inputs)
        # CLS tokens may always be read, so that no row of the attention is empty even without a history.
        position = torch.arange(self.num_cls + body.shape[1], device=lengths.device)
        mask = (position < self.num_cls + lengths.unsqueeze(1))[:, None, None]  # [B, 1, 1, n_sum + T']

        x_sum = self.token_summaries[0](x)
        s = torch.cat([x_sum, body], dim=1)  # [B, n_sum + T', d]
        s_sum = self.sequence_summaries[0](s, mask, lengths)
        for layer in range(self.num_layers):
            x, s = self.interaction_archs[layer](x, s_sum), self.sequence_archs[layer](s, mask, x_sum)
            # The Cross Arch of the next layer; the last of them, if they share one.
            cross_arch = min(layer + 1, len(self.token_summaries) - 1)
            x_sum = self.token_summaries[cross_arch](x)
            s_sum = self.sequence_summaries[cross_arch](s, mask, lengths)
        return self.readout(torch.cat([x_sum, s_sum], dim=1))
