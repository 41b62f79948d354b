import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cetnet.models.component import InputShape
from cetnet.models.dhen import DHEN, Convolution, Cross, DHENConfig, DHENLayer, Dot, SelfAttention
from cetnet.models.layers.tokens import TokenLinear


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomise(module: nn.Module) -> None:
    """Biases start at zero; give them values so that a reference without them would fail."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)


def dot_reference(module: Dot, tokens: Tensor) -> Tensor:
    rows = []
    for x in tokens:
        pairs = [x[i].dot(x[j]) for i in range(len(x)) for j in range(i + 1, len(x))]
        hidden = F.silu(module.mlp[0](torch.stack(pairs)))
        rows.append(module.mlp[2](hidden).reshape(-1, tokens.shape[2]))
    return torch.stack(rows)


def dcn_reference(module: Cross, tokens: Tensor) -> Tensor:
    rows = []
    for x in tokens:
        flat = x.reshape(-1)
        crossed = flat * (module.cross.weight @ flat + module.cross.bias)
        rows.append(module.compress.linear.weight @ crossed.reshape(x.shape))
    return torch.stack(rows)


def test_dot() -> None:
    module = Dot(4, 3, 6, (5,), "silu")
    randomise(module)
    tokens = torch.randn(7, 4, 6)
    torch.testing.assert_close(module(tokens), dot_reference(module, tokens))


def test_a_lone_token_is_multiplied_with_itself() -> None:
    module = Dot(1, 3, 6, (), "silu")
    tokens = torch.randn(7, 1, 6)
    square = tokens[:, 0].square().sum(1, keepdim=True)
    torch.testing.assert_close(module(tokens), module.mlp(square))


def test_dcn() -> None:
    module = Cross(4, 3, 6)
    randomise(module)
    tokens = torch.randn(7, 4, 6)
    torch.testing.assert_close(module(tokens), dcn_reference(module, tokens))


def test_convolution() -> None:
    module = Convolution(4, 3)
    tokens = torch.randn(2, 4, 6)
    kernel = module.convolution.weight[0, 0]
    padded = F.pad(tokens, (2, 2, 2, 2))
    image = torch.empty_like(tokens)
    for i in range(4):
        for j in range(6):
            image[:, i, j] = (padded[:, i : i + 5, j : j + 5] * kernel).sum((1, 2)) + module.convolution.bias
    torch.testing.assert_close(module(tokens), module.compress.linear.weight @ image)


def test_self_attention() -> None:
    module = SelfAttention(4, 3, 6)
    randomise(module)
    encoder, attention = module.encoder, module.encoder.self_attn

    def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias

    rows = []
    tokens = torch.randn(2, 4, 6)
    for x in tokens:
        query, key, value = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=1)
        weights = torch.stack([torch.stack([q.dot(k) / 6**0.5 for k in key]).softmax(0) for q in query])
        attended = weights @ value @ attention.out_proj.weight.T + attention.out_proj.bias
        y = layer_norm(encoder.norm1, x + attended)
        hidden = (y @ encoder.linear1.weight.T + encoder.linear1.bias).clamp(min=0)
        y = layer_norm(encoder.norm2, y + hidden @ encoder.linear2.weight.T + encoder.linear2.bias)
        rows.append(module.compress.linear.weight @ y)
    torch.testing.assert_close(module(tokens), torch.stack(rows))


@pytest.mark.parametrize(
    "module", [SelfAttention(64, 48, 64), Convolution(64, 48)], ids=["attention", "convolution"]
)
def test_linear_maps_start_from_xavier_normal(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx((2 / sum(parameter.shape)) ** 0.5, rel=0.1), name
        elif name.endswith("bias"):
            assert not parameter.any(), name


@pytest.mark.parametrize("ensemble", ["concat", "sum", "weighted_sum"])
@pytest.mark.parametrize("outputs", [2, 4])
def test_layer(ensemble: str, outputs: int) -> None:
    layer = DHENLayer(4, 6, ("dot", "dcn"), outputs, ensemble, (5,), "silu")  # type: ignore[arg-type]
    randomise(layer)
    tokens = torch.randn(7, 4, 6)
    dot, dcn = layer.interactions
    parts = [dot_reference(dot, tokens), dcn_reference(dcn, tokens)]  # type: ignore[arg-type]
    if ensemble == "concat":
        joined = torch.cat(parts, dim=1)
    else:
        weights = torch.ones(2) if layer.weights is None else layer.weights
        assert (ensemble == "weighted_sum") == (layer.weights is not None)
        joined = weights[0] * parts[0] + weights[1] * parts[1]
    if isinstance(layer.shortcut, TokenLinear):
        joined = joined + torch.einsum("lm,bmd->bld", layer.shortcut.linear.weight, tokens)
    else:
        assert joined.shape[1] == 4
        joined = joined + tokens
    centred = joined - joined.mean(2, keepdim=True)
    normed = centred / (joined.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(tokens), normed * layer.norm.weight + layer.norm.bias)


def test_concatenation_widens_once() -> None:
    shape = InputShape(num_tokens=5, num_sequences=0, max_length=0, num_dense=0, embedding_dim=4)
    model = DHEN(shape, DHENConfig(embedding_dim=4, num_layers=3))
    assert [layer.num_outputs for layer in model.layers] == [10, 10, 10]
    assert isinstance(model.layers[1].shortcut, nn.Identity)
