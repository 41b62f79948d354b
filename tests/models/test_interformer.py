from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from cetnet.models.component import Behavior, InputShape
from cetnet.models.interformer import PFFN, InterFormer, InterFormerConfig, RotaryAttention
from cetnet.models.layers.sequences import align_recent, merge_by_recency
from tests.models.inputs import random_inputs


def test_align_recent() -> None:
    sequences = torch.zeros(3, 2, 4, 1)
    sequences[0, 0, :3, 0] = torch.tensor([1.0, 2.0, 3.0])
    sequences[0, 1, :1, 0] = torch.tensor([9.0])
    sequences[1, 1, :4, 0] = torch.tensor([5.0, 6.0, 7.0, 8.0])
    aligned, lengths = align_recent(sequences, torch.tensor([[3, 1], [0, 4], [0, 0]]))
    assert lengths.tolist() == [3, 4, 0]
    assert aligned[..., 0].tolist() == [[1, 2, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert aligned[..., 1].tolist() == [[0, 0, 9, 0], [5, 6, 7, 8], [0, 0, 0, 0]]


def test_merge_by_recency() -> None:
    events = torch.tensor([[[1, 2, 3], [7, 8, 0]], [[0, 0, 0], [4, 5, 6]], [[0, 0, 0], [0, 0, 0]]])
    merged, lengths = merge_by_recency(events.unsqueeze(3), torch.tensor([[3, 2], [0, 3], [0, 0]]))
    assert lengths.tolist() == [5, 3, 0]
    assert merged[0, :5, 0].tolist() == [1, 2, 7, 3, 8]
    assert merged[1, :3, 0].tolist() == [4, 5, 6]


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Attention of one row, head by head and query by query: `[q, d]`, `[L, d]`, `[L, d]` -> `[q, d]`."""
    size = query.shape[1] // num_heads
    out = torch.empty_like(query)
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(query)):
            scores = torch.stack([query[i, part].dot(k[part]) / size**0.5 for k in key])
            out[i, part] = scores.softmax(0) @ value[:, part]
    return out


def rotated(x: Tensor, num_heads: int, first_position: int) -> Tensor:
    """Rotary positions as complex numbers: feature pair j of position t turns by t 10000^(-2j / size)."""
    size = x.shape[1] // num_heads
    out = torch.empty_like(x)
    for t in range(len(x)):
        for head in range(num_heads):
            for j in range(size // 2):
                a, b = head * size + j, head * size + size // 2 + j
                turn = torch.polar(
                    torch.tensor(1.0), torch.tensor(max(t - first_position, 0) * 10000 ** (-2 * j / size))
                )
                z = torch.complex(x[t, a], x[t, b]) * turn
                out[t, a], out[t, b] = z.real, z.imag
    return out


def gate(module: nn.Module, x: Tensor) -> Tensor:
    score = x @ module.linear.weight.T + module.linear.bias
    return x * (torch.sigmoid(score) if isinstance(module.activation, nn.Sigmoid) else score)


def summarise_sequence(module: nn.Module, s: Tensor, config: InterFormerConfig) -> Tensor:
    cls, body = s[: config.num_summary_tokens], s[config.num_summary_tokens :]
    key, value = ((s if config.pma_keys == "all" else body) @ module.pma.key_value.weight.T).chunk(2, dim=1)
    pma = torch.zeros(config.num_pma_tokens, s.shape[1])
    if len(key):
        pma = module.pma.output(attend(module.pma.queries, key, value, config.num_heads))
    missing = max(0, config.num_recent_tokens - len(body))
    recent = torch.cat(
        [torch.zeros(missing, s.shape[1]), body[len(body) - config.num_recent_tokens + missing :]]
    )
    return gate(module.gating, torch.cat([cls, pma, recent]))


def interformer_reference(
    model: InterFormer, config: InterFormerConfig, tokens: Tensor, histories: list[Tensor], dense: Tensor
) -> Tensor:
    """Logit of one row without padding or masks: `[n, d]`, k times `[length, d]`, `[m]`."""
    dense_mlp, nothing = model.inputs.mlp, torch.zeros(config.embedding_dim)
    if config.pooled_tokens:
        tokens = torch.stack([*tokens, *(h.mean(0) if len(h) else nothing for h in histories)])
    x = torch.cat([tokens, dense_mlp[2](F.silu(dense_mlp[0](dense)))[None]])
    x_sum = gate(model.token_summaries[0].gating, model.token_summaries[0].lce.linear.weight @ x)
    groups = [histories]
    if config.sequence_join == "separate":
        groups = [[histories[i] for i in behavior.sequences] for behavior in BEHAVIORS]
    events = []
    for age in range(max(len(history) for history in histories), 0, -1):
        for group, mask_net in zip(groups, model.sequence_input.mask_nets, strict=True):
            if max(len(h) for h in group) >= age:
                event = torch.cat([h[-age] if len(h) >= age else nothing for h in group])
                mask = mask_net.mask[2](F.silu(mask_net.mask[0](event)))
                events.append(mask_net.lce(event * mask))
    s = torch.cat([x_sum, *(event[None] for event in events)])
    s_sum = summarise_sequence(model.sequence_summaries[0], s, config)
    for layer in range(config.num_layers):
        arch, sequence = model.interaction_archs[layer], model.sequence_archs[layer]
        assert len(arch.interaction) == config.interaction_layers
        interacted = arch.interaction(torch.cat([x, s_sum])[None])[0]  # the DHEN layer has its own test
        interacted = arch.lce.linear.weight @ interacted
        x = arch.norm(x + interacted) if config.residual else interacted
        projected = sequence.pffn_norm(s) @ pffn_matrix(sequence.pffn, sequence.summary_norm(x_sum))
        projected = s + projected if config.residual else projected
        query, key, value = sequence.attention.query_key_value(sequence.attention_norm(projected)).chunk(3, 1)
        first = 0 if config.rotary_cls else config.num_summary_tokens
        query, key = rotated(query, config.num_heads, first), rotated(key, config.num_heads, first)
        attended = sequence.attention.output(attend(query, key, value, config.num_heads))
        s = projected + attended if config.residual else attended
        cross_arch = 0 if config.share_cross_arch else layer + 1
        summary = model.token_summaries[cross_arch]
        x_sum = gate(summary.gating, summary.lce.linear.weight @ x)
        s_sum = summarise_sequence(model.sequence_summaries[cross_arch], s, config)
    hidden = model.readout.mlp(torch.cat([x_sum, s_sum]).reshape(1, -1))
    return model.readout.logit(hidden)[0]


def pffn_matrix(pffn: nn.Module, x_sum: Tensor) -> Tensor:
    """The matrix of app. A.2.2, d x d, that the events `[L, d]` are multiplied with from the right."""
    if pffn.mlp is not None:
        first, last = pffn.mlp[0], pffn.mlp[2]
        factors = last(F.silu(first(x_sum.flatten()))).view(2, -1, x_sum.shape[1])
        return factors[0].T @ factors[1] / factors[0].numel() ** 0.5
    return x_sum.T @ pffn.weight if pffn.kind == "dot" else pffn.weight.T @ x_sum


BEHAVIORS = (Behavior((1,), (0,)), Behavior((0, 2), (1, None)))
SWITCHES = {
    "default": {},
    "mixture": {"pffn": "mixture", "gating": "identity", "pooled_tokens": True},
    "hypernetwork": {"pffn": "hypernetwork", "pffn_rank": 3, "rotary_cls": False, "pma_keys": "body"},
    "literal": {"residual": False, "share_cross_arch": True},
    "separate": {"sequence_join": "separate", "interaction_layers": 2},
}


@pytest.mark.parametrize(
    ("num_sequences", "switches"), [(1, {}), *((3, s) for s in SWITCHES.values())], ids=["one", *SWITCHES]
)
def test_against_a_plain_reference(num_sequences: int, switches: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = InterFormerConfig(embedding_dim=8, num_heads=2, hidden_units=(16, 8), num_layers=2, **switches)
    behaviors = BEHAVIORS if num_sequences == 3 else ()
    shape = InputShape(3, num_sequences, 4, num_dense=2, embedding_dim=8, behaviors=behaviors)
    model = InterFormer(shape, config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    inputs = random_inputs(shape, 6)
    inputs.lengths[0], inputs.lengths[1], inputs.lengths[2] = 0, 1, 4
    with torch.no_grad():
        logit = model(inputs)[1]
        for row in range(6):
            histories = [
                h[:length] for h, length in zip(inputs.sequences[row], inputs.lengths[row], strict=True)
            ]
            expected = interformer_reference(model, config, inputs.tokens[row], histories, inputs.dense[row])
            torch.testing.assert_close(logit[row], expected, rtol=1e-4, atol=1e-5)


def test_rotary_attention_depends_on_relative_positions_only() -> None:
    torch.manual_seed(0)
    attention = RotaryAttention(10, 8, 2)
    s = torch.randn(1, 4, 8)
    shifted = torch.cat([torch.randn(1, 3, 8), s], dim=1)
    all_seen = torch.ones(1, 1, 1, 4, dtype=torch.bool)
    last_seen = torch.arange(7)[None, None, None] >= 3
    torch.testing.assert_close(attention(shifted, last_seen)[:, 3:], attention(s, all_seen))


def test_order_of_events_matters() -> None:
    torch.manual_seed(0)
    config = InterFormerConfig(embedding_dim=8, num_heads=2, hidden_units=(8,))
    shape = InputShape(3, 1, max_length=5, num_dense=0, embedding_dim=8)
    model = InterFormer(shape, config)
    inputs = random_inputs(shape, 2)
    inputs.lengths.fill_(5)
    inputs = inputs._replace(sequences=torch.randn_like(inputs.sequences))
    swapped = inputs.sequences[:, :, [1, 0, 2, 3, 4]]  # not recent tokens: only rotary positions see it
    difference = model(inputs)[1] - model(inputs._replace(sequences=swapped))[1]
    assert difference.abs().min() > 1e-4


def test_activations_keep_their_scale_at_initialisation() -> None:
    torch.manual_seed(0)
    config = InterFormerConfig()
    shape = InputShape(6, 2, max_length=20, num_dense=0, embedding_dim=32)
    model = InterFormer(shape, config)
    inputs = random_inputs(shape, 64)
    inputs = inputs._replace(tokens=0.05 * inputs.tokens, sequences=0.05 * inputs.sequences)
    body, _ = align_recent(inputs.sequences, inputs.lengths)
    assert model.sequence_input is not None
    masked = model.sequence_input.mask_nets[0](body)[body.any(2)]
    assert 0.02 < masked.std() < 0.1


@pytest.mark.parametrize("kind", ["dot", "mixture", "hypernetwork"])
@pytest.mark.parametrize("rank", [4, 16])
def test_pffn_keeps_its_scale_at_initialisation(kind: str, rank: int) -> None:
    torch.manual_seed(0)
    pffn = PFFN(kind, 4, 32, rank, "relu")  # type: ignore[arg-type]
    output = pffn(torch.randn(64, 4, 32), torch.randn(64, 24, 32))
    assert output.shape == (64, 24, 32)
    assert output.std().item() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(
    ("tokens", "sequences", "length", "dim", "published"), [(2, 2, 100, 64, 3.10e6), (16, 3, 50, 32, 3.29e6)]
)
def test_size_is_near_the_published_one(
    tokens: int, sequences: int, length: int, dim: int, published: float
) -> None:
    shape = InputShape(tokens, sequences, length, num_dense=int(tokens == 16), embedding_dim=dim)
    with torch.device("meta"):
        model = InterFormer(shape, InterFormerConfig(embedding_dim=dim))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(published, rel=0.05)


def test_heads_need_even_sizes() -> None:
    with pytest.raises(ValidationError, match="multiple of 2 \\* num_heads"):
        InterFormerConfig(embedding_dim=12, num_heads=4)
