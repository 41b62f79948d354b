import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cetnet.models.component import InputShape
from cetnet.models.dhen import DHENConfig
from cetnet.models.layers.config import FieldModelConfig
from cetnet.models.layers.mlp import Activation, BatchNorm, Dice, LogitLinear, activation_layer, mlp
from cetnet.models.layers.tokens import DenseTokens, Readout, TokenLinear


def test_mlp_is_linear_norm_activation_dropout() -> None:
    kinds = [type(layer) for layer in mlp(3, (5, 2), "silu", dropout=0.1, batch_norm=True)]
    assert kinds == [nn.Linear, BatchNorm, nn.SiLU, nn.Dropout] * 2
    assert [type(layer) for layer in mlp(3, (5,))] == [nn.Linear, nn.ReLU]
    x = torch.randn(2, 3)
    assert mlp(3, ())(x) is x


def normalised(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + eps).sqrt()


def test_mlp_with_batch_norm_by_hand() -> None:
    layers = mlp(3, (4, 2), "tanh", batch_norm=True)
    for parameter in layers.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(6, 3)
    expected = x
    for i in (0, 3):
        affine, norm = layers[i], layers[i + 1]
        expected = normalised(expected @ affine.weight.T + affine.bias, 1e-5) * norm.weight + norm.bias  # type: ignore[operator]
        expected = expected.tanh()
    torch.testing.assert_close(layers(x), expected)
    affine = x @ layers[0].weight.T + layers[0].bias  # type: ignore[operator]
    torch.testing.assert_close(layers[1].running_mean, 0.1 * affine.mean(0))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("relu", lambda x: x if x > 0 else 0.0),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("sigmoid", lambda x: 1 / (1 + math.exp(-x))),
        ("tanh", math.tanh),
        ("prelu", lambda x: x if x > 0 else 0.1 * x),
    ],
)
def test_activations(name: Activation, reference: Callable[[float], float]) -> None:
    x = torch.randn(4, 3)
    expected = torch.tensor([[reference(value) for value in row] for row in x.tolist()])
    torch.testing.assert_close(activation_layer(name, 3)(x), expected)


def test_dice_by_hand() -> None:
    dice = Dice(3)
    nn.init.normal_(dice.alpha)
    x = 2 * torch.randn(50, 3) + 1

    def reference(score: Tensor) -> Tensor:
        p = 1 / (1 + (-score).exp())
        return torch.where(p > 0, p * x + dice.alpha * (1 - p) * x, 0)

    torch.testing.assert_close(dice(x), reference(normalised(x, 1e-9)))
    mean, variance = 0.01 * x.mean(0), 0.99 + 0.01 * x.var(0)
    torch.testing.assert_close(dice.eval()(x), reference((x - mean) / variance.sqrt()))


def test_batch_norm_takes_a_lone_row_by_the_running_statistics() -> None:
    norm = BatchNorm(3)
    norm(torch.randn(20, 3) + 5)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()  # type: ignore[union-attr]
    x = torch.randn(1, 3)
    torch.testing.assert_close(norm(x), (x - mean) / (variance + norm.eps).sqrt())
    assert norm(x[:0]).shape == (0, 3)
    assert torch.equal(norm.running_mean, mean)  # type: ignore[arg-type]
    assert torch.equal(norm.running_var, variance)  # type: ignore[arg-type]


def test_initialisation() -> None:
    torch.manual_seed(0)
    layer = mlp(300, (500,))[0]
    assert isinstance(layer, nn.Linear)
    assert layer.weight.std().item() == pytest.approx((2 / 800) ** 0.5, rel=0.02)
    assert not layer.bias.any()


def dense_tokens(num_dense: int, dense: str) -> DenseTokens:
    shape = InputShape(num_tokens=2, num_sequences=0, max_length=0, num_dense=num_dense, embedding_dim=4)
    return DenseTokens(shape, FieldModelConfig.model_validate({"kind": "dnn", "dense": dense}))


def test_dense_tokens_of_fields_are_scaled_vectors() -> None:
    layer = dense_tokens(3, "field")
    tokens, dense = torch.randn(5, 2, 4), torch.randn(5, 3)
    out = layer(tokens, dense)
    assert out.shape == (5, layer.num_tokens, 4) == (5, 5, 4)
    assert torch.equal(out[:, :2], tokens)
    assert layer.fields is not None
    for row in range(5):
        for field in range(3):
            torch.testing.assert_close(out[row, 2 + field], dense[row, field] * layer.fields[field])
    assert sum(p.numel() for p in layer.parameters()) == 3 * 4


def test_dense_tokens_as_one_token() -> None:
    layer = dense_tokens(3, "token")
    out = layer(torch.randn(5, 2, 4), torch.randn(5, 3))
    assert out.shape == (5, layer.num_tokens, 4) == (5, 3, 4)


@pytest.mark.parametrize("mode", ["field", "token"])
def test_no_dense_features_no_token(mode: str) -> None:
    layer = dense_tokens(0, mode)
    tokens = torch.randn(5, 2, 4)
    assert layer(tokens, torch.empty(5, 0)) is tokens
    assert layer.num_tokens == 2
    assert not list(layer.parameters())


def test_token_linear() -> None:
    layer = TokenLinear(3, 2)
    tokens = torch.randn(4, 3, 5)
    torch.testing.assert_close(layer(tokens), torch.einsum("lm,bmd->bld", layer.linear.weight, tokens))


def test_logit_is_float32_under_autocast() -> None:
    layer = LogitLinear(64)
    x = torch.randn(8, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logit = layer(x)
    torch.testing.assert_close(logit, x @ layer.weight[0] + layer.bias)
    assert logit.dtype == torch.float32
    assert layer(x[:1]).shape == (1,)


def test_readout_modes_share_the_logit_and_differ_in_the_embedding() -> None:
    torch.manual_seed(0)
    hidden = Readout(3, DHENConfig(embedding_dim=4, hidden_units=(6, 5)))
    tokens = Readout(3, DHENConfig(embedding_dim=4, hidden_units=(6, 5), readout="tokens"))
    tokens.load_state_dict(hidden.state_dict())
    x = torch.randn(2, 3, 4)
    (embedding, logit, _), (flat, same_logit, _) = hidden(x), tokens(x)
    assert torch.equal(logit, same_logit)
    assert torch.equal(flat, x.reshape(2, 12))
    torch.testing.assert_close(logit, hidden.logit(embedding))
    assert (hidden.output_dim, tokens.output_dim) == (5, 12)
