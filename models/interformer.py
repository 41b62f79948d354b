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

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.dhen import DHENLayers, InteractionName, default_tokens_per_interaction
from cetnet.models.layers.attention import RotaryAttention
from cetnet.models.layers.config import TokenModelConfig
from cetnet.models.layers.cross_arch import Gate, SequenceSummary, TokenSummary
from cetnet.models.layers.mlp import Activation, BatchNorm, linear, mlp
from cetnet.models.layers.pffn import PFFN, PFFNKind
from cetnet.models.layers.sequences import align_recent, mean_of_events, merge_by_recency
from cetnet.models.layers.tokens import DenseTokens, Readout, TokenLinear


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
        self.token_summaries = nn.ModuleList(
            TokenSummary(num_tokens, self.num_cls, dim, config.gating) for _ in range(summaries)
        )
        self.sequence_summaries = nn.ModuleList(
            SequenceSummary(
                self.num_cls,
                config.num_pma_tokens,
                config.num_recent_tokens,
                dim,
                config.num_heads,
                config.gating,
                reads_cls=config.pma_keys == "all",
            )
            for _ in range(summaries if k > 0 else 0)
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
