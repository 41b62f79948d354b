"""DIN, DIEN and DMIN against loops over rows, heads and positions, and their shared layers."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from cetnet.models.component import Behavior, InputShape, input_shape
from cetnet.models.dien import DIEN, AttentionGRU, DIENConfig, InterestEvolution, NextEventLoss
from cetnet.models.din import DIN, DINConfig
from cetnet.models.dmin import DMIN, DMINConfig, MultiInterest
from cetnet.models.layers.target_attention import Events, TargetAttention, event_softmax, read_behavior
from cetnet.models.schema import Feature, Schema
from tests.models.inputs import random_inputs

LENGTHS = torch.tensor([3, 0, 1, 5])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_read_behavior_joins_sequences_and_their_targets() -> None:
    shape = InputShape(3, 3, max_length=4, num_dense=0, embedding_dim=2)
    inputs = random_inputs(shape, 5)
    candidate, events, lengths = read_behavior(inputs, Behavior((2, 0), (1, None)))
    assert torch.equal(candidate, torch.cat([inputs.tokens[:, 1], torch.zeros(5, 2)], dim=1))
    assert torch.equal(lengths, inputs.lengths[:, [0, 2]].amax(1))
    for row in range(5):
        n = int(lengths[row])
        for part, sequence in enumerate((2, 0)):
            own = int(inputs.lengths[row, sequence])
            expected = torch.zeros(4, 2)  # the newest events side by side
            expected[n - own : n] = inputs.sequences[row, sequence, :own]
            assert torch.equal(events[row, :, 2 * part : 2 * part + 2], expected)


def test_event_softmax_is_within_rows() -> None:
    events = Events.of(torch.randn(4, 5, 2), LENGTHS)
    scores = torch.randn(9)
    expected = torch.cat([part.softmax(0) for part in scores.split(LENGTHS.tolist())])
    torch.testing.assert_close(event_softmax(scores, events, 4), expected)
    assert event_softmax(scores.bfloat16(), events, 4).dtype == torch.float32
    assert event_softmax(scores[:0], Events.of(torch.randn(2, 3, 2), torch.zeros(2)), 2).shape == (0,)


@pytest.mark.parametrize("softmax", [True, False])
def test_target_attention(softmax: bool) -> None:
    layer = TargetAttention(3, (4,), "relu", 0.0, softmax)
    query, sequence = torch.randn(4, 3), torch.randn(4, 5, 3)
    rows = []
    for q, events, length in zip(query, sequence, LENGTHS.tolist(), strict=True):
        scores = [layer.unit.mlp(torch.cat([q, h, q - h, q * h])) for h in events[:length]]
        if softmax:
            total = sum(score.exp() for score in scores)
            scores = [score.exp() / total for score in scores]
        rows.append(sum((s * h for s, h in zip(scores, events, strict=False)), torch.zeros(3)))
    events = Events.of(sequence, LENGTHS)
    torch.testing.assert_close(layer(query[events.row], events, 4), torch.stack(rows))


def test_attention_gru() -> None:
    layer = AttentionGRU(3)
    for bias in (layer.cell.bias_ih, layer.cell.bias_hh):
        nn.init.normal_(bias)
    weights = {name: parameter.chunk(3) for name, parameter in layer.cell.named_parameters()}
    lengths = LENGTHS.clamp(min=1)
    sequence, attention = torch.randn(4, 5, 3), torch.rand(4, 5)

    def gates(kind: str, v: Tensor) -> list[Tensor]:
        return [w @ v + b for w, b in zip(weights[f"weight_{kind}"], weights[f"bias_{kind}"], strict=True)]

    rows = []
    for row in range(4):
        s = torch.zeros(3)
        for t in range(int(lengths[row])):
            # PyTorch's second gate keeps the old state: it is 1 - u.
            (reset_x, keep_x, new_x), (reset_s, keep_s, new_s) = gates("ih", sequence[row, t]), gates("hh", s)
            u = attention[row, t] * (1 - (keep_x + keep_s).sigmoid())
            s = (1 - u) * s + u * (new_x + (reset_x + reset_s).sigmoid() * new_s).tanh()
        rows.append(s)

    def pack(x: Tensor) -> nn.utils.rnn.PackedSequence:
        return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)

    states = layer(pack(sequence), pack(attention.unsqueeze(2)).data.squeeze(1))
    torch.testing.assert_close(states, torch.stack(rows))


def test_full_attention_makes_augru_a_gru() -> None:
    layer, gru = AttentionGRU(3), nn.GRU(3, 3, batch_first=True)
    gru.load_state_dict({f"{name}_l0": value for name, value in layer.cell.state_dict().items()})
    sequence = torch.randn(4, 5, 3)
    packed = pack_padded_sequence(sequence, torch.full((4,), 5), batch_first=True)
    torch.testing.assert_close(layer(packed, torch.ones(20)), gru(sequence)[1][0])


def test_a_candidate_is_a_categorical_feature() -> None:
    features = [
        Feature(name="tags", kind="multi_valued", table="item"),
        Feature(name="user", kind="categorical"),
        Feature(name="item", kind="categorical"),
        Feature(name="bought", kind="sequence", table="item", max_length=5),
        Feature(name="words", kind="sequence", max_length=5),
    ]
    tables = {"item": 5, "user": 5, "words": 5}
    schema = Schema(label="label", tables=tables, features=tuple(features))
    assert input_shape(schema, DIN, DINConfig()).behaviors == (Behavior((0, 1), (2, None)),)


@pytest.mark.parametrize("attention", ["din", "bilinear", "dot"])
def test_interest_evolution(attention: str) -> None:
    config = DIENConfig(attention=attention, attention_units=(4,), attention_activation="relu")  # type: ignore[arg-type]
    layer = InterestEvolution(3, config)
    if attention == "bilinear":
        assert torch.equal(layer.attention.weight[0], torch.eye(3))  # type: ignore[union-attr,index]
        nn.init.normal_(layer.attention.weight)  # type: ignore[union-attr,arg-type]
    candidate, sequence = torch.randn(4, 3), torch.randn(4, 5, 3)
    sequence = sequence.masked_fill((torch.arange(5) >= LENGTHS.unsqueeze(1)).unsqueeze(2), 0)
    state, interests = layer(candidate, sequence, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        if length == 0:
            assert not state[row].any()
            continue
        expected, _ = layer.extraction(sequence[row, :length])
        torch.testing.assert_close(interests[row, :length], expected)
        q = candidate[row]
        scores = []
        for h in expected:
            if attention == "din":
                scores.append(layer.attention.mlp(torch.cat([q, h, q - h, q * h]))[0])  # type: ignore[union-attr]
            elif attention == "bilinear":
                scores.append(q @ layer.attention.weight[0] @ h)  # type: ignore[union-attr,index]
            else:
                scores.append(q.dot(h))
        weights = torch.stack(scores).softmax(0)
        packed = pack_padded_sequence(expected[None], torch.tensor([length]), batch_first=True)
        torch.testing.assert_close(state[row], layer.evolution(packed, weights)[0])


def test_auxiliary_loss_is_the_mean_over_the_events_that_follow_one() -> None:
    layer = NextEventLoss(3, (4,))
    interests, sequence = torch.randn(4, 5, 3), torch.randn(4, 5, 3)
    everything = [event for row, length in zip(sequence, LENGTHS, strict=True) for event in row[:length]]
    torch.manual_seed(3)
    drawn = iter(torch.randint(9, (6,)).tolist())
    torch.manual_seed(3)
    loss = layer(interests, sequence, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        terms = []
        for t in range(length - 1):
            right = layer.mlp(torch.cat([interests[row, t], sequence[row, t + 1]])).sigmoid()
            wrong = layer.mlp(torch.cat([interests[row, t], everything[next(drawn)]])).sigmoid()
            terms.append((-right.log() - (1 - wrong).log()).item())
        assert loss[row].item() == pytest.approx(sum(terms) / max(length - 1, 1), abs=1e-6)


def test_auxiliary_loss_is_for_training_only_and_weighted() -> None:
    shape = InputShape(2, 2, 5, 0, 4, behaviors=(Behavior((0, 1), (0, 1)),))
    inputs = random_inputs(shape, 6)
    losses = []
    for weight in (1.0, 2.0):
        torch.manual_seed(1)
        component = DIEN(shape, DIENConfig(embedding_dim=4, hidden_units=(4,), auxiliary_weight=weight))
        losses.append(component(inputs).auxiliary)
        assert component.eval()(inputs).auxiliary is None
    torch.testing.assert_close(losses[1], 2 * losses[0])
    assert losses[0].any()


@pytest.mark.parametrize("refiner", [True, False])
@pytest.mark.parametrize("position_dim", [0, 2])
def test_multi_interest(refiner: bool, position_dim: int) -> None:
    config = DMINConfig(
        num_heads=2,
        refiner=refiner,
        position_dim=position_dim,
        attention_units=(3,),
        attention_activation="relu",
    )
    layer = MultiInterest(4, 5, config)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    candidate, sequence = torch.randn(4, 4), torch.randn(4, 5, 4)
    found = layer(candidate, sequence, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        x = sequence[row, :length]
        if refiner and length:
            block = layer.refiner
            assert block is not None
            attended = block.output(heads_by_hand(block.query_key_value, x, 2).flatten(1))
            x = block.feed_forward(block.norm(x + attended))
        expected = []
        for h, interest in enumerate(layer.interests):
            total = torch.zeros(4)
            if length:
                head = heads_by_hand(layer.query_key_value, x, 2)[:, h]
                events = interest.feed_forward(interest.norm(x + head @ interest.output.weight.T))
                scores = []
                for t, event in enumerate(events):
                    q = candidate[row]
                    if position_dim:
                        q = interest.project(torch.cat([q, interest.positions[t]]))
                    features = torch.cat([q, event, q - event, q * event])
                    scores.append(interest.attention.unit.mlp(features)[0])
                total = torch.stack(scores).softmax(0) @ events
            expected.append(total)
        torch.testing.assert_close(found[row], torch.cat(expected))


def heads_by_hand(projection: nn.Linear, x: Tensor, num_heads: int) -> Tensor:
    """Causal self-attention of one list `[L, D]` -> `[L, H, D / H]`."""
    query, key, value = projection(x).chunk(3, dim=1)
    size = x.shape[1] // num_heads
    out = torch.zeros(len(x), num_heads, size)
    for h in range(num_heads):
        part = slice(h * size, (h + 1) * size)
        for t in range(len(x)):
            scores = torch.stack([query[t, part] @ key[s, part] / math.sqrt(size) for s in range(t + 1)])
            out[t, h] = scores.softmax(0) @ value[: t + 1, part]
    return out


def test_din_reads_candidate_fields_and_attended_histories() -> None:
    shape = InputShape(3, 2, 5, 1, 4, behaviors=(Behavior((1,), (2,)), Behavior((0,), (None,))))
    config = DINConfig(embedding_dim=4, hidden_units=(6,), attention_units=(3,), activation="relu")
    component = DIN(shape, config).eval()
    inputs = random_inputs(shape, 4)
    parts = [component.inputs(inputs.tokens, inputs.dense).flatten(1)]
    for (sequence, target), attention in zip(((1, 2), (0, None)), component.attentions, strict=True):
        query = torch.zeros(4, 4) if target is None else inputs.tokens[:, target]
        events = Events.of(inputs.sequences[:, sequence], inputs.lengths[:, sequence])
        parts.append(attention(query[events.row], events, 4))
    hidden = component.mlp(torch.cat(parts, dim=1))
    torch.testing.assert_close(component(inputs).embedding, hidden)
    torch.testing.assert_close(component(inputs).logit, component.logit(hidden))


def test_dien_and_dmin_read_candidate_fields_and_what_histories_became() -> None:
    shape = InputShape(3, 2, 5, 1, 4, behaviors=(Behavior((1,), (2,)), Behavior((0,), (None,))))
    inputs = random_inputs(shape, 4)
    settings = {"embedding_dim": 4, "hidden_units": (6,), "batch_norm": True}
    dien = DIEN(shape, DIENConfig(**settings)).eval()
    dmin = DMIN(shape, DMINConfig(**settings, num_heads=4, bn_only_once=True)).eval()
    for component, histories in ((dien, dien.evolutions), (dmin, dmin.histories)):
        parts = [component.inputs(inputs.tokens, inputs.dense).flatten(1)]
        for behavior, history in zip(shape.behaviors, histories, strict=True):
            read = history(*read_behavior(inputs, behavior))
            parts.append(read[0] if component is dien else read)
        features = torch.cat(parts, dim=1)
        if component is dmin:
            assert [type(layer) for layer in dmin.mlp] == [nn.Linear, nn.ReLU]
            assert isinstance(dmin.norm, nn.BatchNorm1d)
            nn.init.normal_(dmin.norm.bias)
            features = dmin.norm(features)
        hidden = component.mlp(features)
        torch.testing.assert_close(component(inputs).embedding, hidden)
        torch.testing.assert_close(component(inputs).logit, component.logit(hidden))


def test_dmin_drops_out_attention_in_training_only() -> None:
    shape = InputShape(1, 1, 5, 0, 4, behaviors=(Behavior((0,), (0,)),))
    component = DMIN(shape, DMINConfig(embedding_dim=4, attention_units=(), attention_dropout=0.5))
    inputs = random_inputs(shape, 8)
    assert not torch.equal(component(inputs).logit, component(inputs).logit)
    assert torch.equal(component.eval()(inputs).logit, component(inputs).logit)


def test_no_event_in_the_whole_batch() -> None:
    shape = InputShape(2, 1, 5, 0, 4, behaviors=(Behavior((0,), (0,)),))
    inputs = random_inputs(shape, 3)
    inputs = inputs._replace(
        sequences=inputs.sequences[:, :, :1], lengths=torch.zeros(3, 1, dtype=torch.long)
    )
    component = DIN(shape, DINConfig(embedding_dim=4, hidden_units=(6,), batch_norm=True))
    component(inputs).logit.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in component.parameters())
    assert all(b.isfinite().all() for b in component.buffers())
