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
from torch.nn.functional import scaled_dot_product_attention

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.dhen import DHENLayers, InteractionName, default_tokens_per_interaction
from cetnet.models.layers.attention import merge_heads, split_heads
from cetnet.models.layers.config import TokenModelConfig
from cetnet.models.layers.mlp import Activation, BatchNorm, linear, mlp
from cetnet.models.layers.sequences import align_recent, mean_of_events, merge_by_recency
from cetnet.models.layers.tokens import DenseTokens, Readout, TokenLinear

Gate = Literal["sigmoid", "identity"]
PFFNKind = Literal["dot", "mixture", "hypernetwork"]


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
        description="Interaction modules of the Interaction Arch, which is a DHEN.",
    )
    interaction_layers: int = Field(1, ge=1, description="Layers of the DHEN that an Interaction Arch is.")
    dot_hidden_units: tuple[int, ...] = Field(
        (512,), description="Hidden layers between the dot products and the tokens made of them."
    )

    pffn: PFFNKind = Field(
        "dot",
        description="Matrix of the personalised FFN, from the summary X_sum. `dot`: W^T X_sum, dot products with "
        "the summary tokens. `mixture`: X_sum^T W, mixtures of them (the paper's equation to the letter). "
        "`hypernetwork`: an MLP on X_sum makes it, as two factors of rank pffn_rank.",
    )
    pffn_rank: int = Field(4, gt=0, description="Rank of the matrix of pffn `hypernetwork`.")
    gating: Gate = Field(
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


class SequenceMask(nn.Module):
    """MaskNet of the sequences: MLP_lce(S * MLP_mask(S)) at every position, `[B, T, k d]` -> `[B, T, d]` (eq. 6)."""

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


class SequenceInput(nn.Module):
    """The preprocessing of the sequences: one body of events `[B, T', d]` and its lengths `[B]` (section 3.2)."""

    def __init__(self, shape: InputShape, config: InterFormerConfig) -> None:
        super().__init__()
        self.groups = [list(range(shape.num_sequences))]
        if config.sequence_join == "separate":
            self.groups = [list(behavior.sequences) for behavior in shape.behaviors]
        self.mask_nets = nn.ModuleList(
            SequenceMask(len(group), shape.embedding_dim, config.activation) for group in self.groups
        )
        self.max_length = shape.max_length * len(self.groups)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """`Inputs` -> `[B, T', d]`, oldest first, left-aligned, and `[B]`."""
        joined = [align_recent(inputs.sequences[:, g], inputs.lengths[:, g]) for g in self.groups]
        bodies = [mask_net(body) for mask_net, (body, _) in zip(self.mask_nets, joined, strict=True)]
        if len(bodies) == 1:
            return bodies[0], joined[0][1]
        return merge_by_recency(torch.stack(bodies, dim=1), torch.stack([n for _, n in joined], dim=1))


class PMA(nn.Module):
    """Pooling by multi-head attention: learned queries read the sequence, `[B, L, d]` -> `[B, q, d]` (eq. 4).

    The projections have no bias: softmax cancels a bias of the keys, which would never get a gradient.
    """

    def __init__(self, num_queries: int, embedding_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.randn(num_queries, embedding_dim))
        self.key_value = linear(embedding_dim, 2 * embedding_dim, bias=False)
        self.output = linear(embedding_dim, embedding_dim)

    def forward(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """`[B, L, d]`, mask `[B, 1, 1, L]` (True: may be read) -> `[B, q, d]`."""
        key, value = self.key_value(sequence).chunk(2, dim=2)
        queries = self.queries.expand(sequence.shape[0], -1, -1)
        query, key, value = (split_heads(x, self.num_heads) for x in (queries, key, value))
        return self.output(merge_heads(scaled_dot_product_attention(query, key, value, attn_mask=mask)))


class Gating(nn.Module):
    """X * sigmoid(Linear(X)), or without the sigmoid, position-wise, `[B, n, d]` -> `[B, n, d]`."""

    def __init__(self, embedding_dim: int, gate: Gate = "sigmoid") -> None:
        super().__init__()
        self.linear = linear(embedding_dim, embedding_dim)
        self.activation = nn.Sigmoid() if gate == "sigmoid" else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, n, d]`."""
        return tokens * self.activation(self.linear(tokens))


class TokenSummary(nn.Module):
    """The non-sequence side: X_sum = Gating(LCE(X)), `[B, n, d]` -> `[B, n_sum, d]` (eq. 10)."""

    def __init__(self, num_tokens: int, num_outputs: int, embedding_dim: int, gate: Gate) -> None:
        super().__init__()
        self.lce = TokenLinear(num_tokens, num_outputs)
        self.gating = Gating(embedding_dim, gate)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` -> `[B, n_sum, d]`."""
        return self.gating(self.lce(tokens))


class SequenceSummary(nn.Module):
    """The sequence side: S_sum = Gating([S_CLS | S_PMA | S_recent]) (eq. 11).

    `[B, n_sum + T, d]` -> `[B, n_sum + num_pma + num_recent, d]`. Recent tokens that a short history lacks are zeros,
    and so is what PMA reads of none, if it reads the events only.
    """

    def __init__(self, config: InterFormerConfig) -> None:
        super().__init__()
        self.num_cls, self.num_recent = config.num_summary_tokens, config.num_recent_tokens
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
    """X^(l+1) = LN(X + LCE(Interaction([X | S_sum]))), the Interaction a DHEN (eq. 7)."""

    def __init__(
        self, num_tokens: int, num_sequence_tokens: int, embedding_dim: int, config: InterFormerConfig
    ) -> None:
        super().__init__()
        inputs = num_tokens + num_sequence_tokens
        self.interaction = DHENLayers(
            config.interaction_layers,
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
    """Every event times a matrix made from the summary X_sum: `[B, n_sum, d]`, `[B, L, d]` -> `[B, L, d]`.

    The matrix, d x d per sample, is never formed: its two thin factors are applied one after the other.

    Args:
        kind: `dot`: W^T X_sum, dot products of events and summary tokens, as the paper reads its own equation.
            `mixture`: X_sum^T W, mixtures of the summary tokens, the equation to the letter. `hypernetwork`: an MLP
            on X_sum makes both factors.
        num_summary_tokens: n_sum, the rank of `dot` and `mixture`.
        embedding_dim: d.
        rank: columns of the factors of `hypernetwork`.
        activation: of the MLP of `hypernetwork`.
    """

    def __init__(
        self, kind: PFFNKind, num_summary_tokens: int, embedding_dim: int, rank: int, activation: Activation
    ) -> None:
        super().__init__()
        self.kind = kind
        size = num_summary_tokens * embedding_dim
        self.weight: nn.Parameter | None = None
        self.mlp: nn.Sequential | None = None
        if kind == "hypernetwork":
            # Numbers near 1, and a scale that the factors share, give unit variance out of unit variance in.
            self.scale = (rank * embedding_dim) ** -0.25
            self.mlp = mlp(size, (size,), activation)
            last = linear(size, 2 * rank * embedding_dim)
            nn.init.kaiming_normal_(last.weight)
            self.mlp.append(last)
            self.mlp.append(nn.Unflatten(1, (2, rank, embedding_dim)))
        else:
            # Unit variance out of unit variance in; xavier_normal would give 2.7 times that.
            self.weight = nn.Parameter(torch.randn(num_summary_tokens, embedding_dim) * size**-0.5)

    def forward(self, token_summary: Tensor, sequence: Tensor) -> Tensor:
        """`[B, n_sum, d]`, `[B, L, d]` -> `[B, L, d]`."""
        if self.mlp is not None:
            first, second = (self.scale * self.mlp(token_summary.flatten(1))).unbind(1)
            return torch.bmm(torch.bmm(sequence, first.transpose(1, 2)), second)
        assert self.weight is not None
        if self.kind == "mixture":
            return (sequence @ self.weight.T) @ token_summary
        return (sequence @ token_summary.transpose(1, 2)) @ self.weight


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions, bidirectional: `[B, L, d]` -> `[B, L, d]`.

    Rotary embedding: RoFormer, arXiv 2104.09864, eq. 34; feature i is paired with feature i + d_head / 2. Positions
    are counted from `first_position`; what comes before it is not rotated.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, max_length: int, embedding_dim: int, num_heads: int, first_position: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = linear(embedding_dim, 3 * embedding_dim, bias=False)
        self.output = linear(embedding_dim, embedding_dim)
        head_dim = embedding_dim // num_heads
        frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        positions = (torch.arange(max_length) - first_position).clamp(min=0)
        angles = positions.unsqueeze(1) * frequencies  # [L, d_head / 2]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        """Turn each pair of features by its position's angles, `[B, heads, L, d_head]` -> the same."""
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        a, b = x.chunk(2, dim=3)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=3)

    def forward(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """`[B, L, d]`, mask `[B, 1, 1, L]` (True: may be read) -> `[B, L, d]`."""
        query, key, value = (
            split_heads(x, self.num_heads) for x in self.query_key_value(sequence).chunk(3, dim=2)
        )
        attended = scaled_dot_product_attention(self.rotate(query), self.rotate(key), value, attn_mask=mask)
        return self.output(merge_heads(attended))


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
        self.pffn = PFFN(config.pffn, num_cls, dim, config.pffn_rank, config.activation)
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
        if config.pooled_tokens:
            shape = shape._replace(num_tokens=shape.num_tokens + k)
        self.inputs = DenseTokens(shape, config)
        num_tokens, self.num_cls = self.inputs.num_tokens, config.num_summary_tokens

        self.sequence_input = SequenceInput(shape, config) if k > 0 else None
        summaries = 1 if config.share_cross_arch or k == 0 else config.num_layers + 1
        self.token_summaries = nn.ModuleList(
            TokenSummary(num_tokens, self.num_cls, dim, config.gating) for _ in range(summaries)
        )
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
        # Attention costs length^2. Batch normalisation, Dice's too, needs all rows.
        self.rows_apart = k > 0 and not any(isinstance(module, BatchNorm) for module in self.modules())

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
