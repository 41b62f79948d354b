import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.component import InputShape
from models.dhen import DCN, DHEN, Convolution, DHENConfig, DHENLayer, Dot, SelfAttention
from models.layers.tokens import TokenLinear


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


def dcn_reference(module: DCN, tokens: Tensor) -> Tensor:
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
    module = DCN(4, 3, 6)
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


def test_self_attention_treats_tokens_alike() -> None:
    module = SelfAttention(4, 4, 6)
    tokens, order = torch.randn(2, 4, 6), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(module.encoder(tokens[:, order]), module.encoder(tokens)[:, order])


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
