import pytest
import torch

from models.component import InputShape
from models.dcnv2 import DCNv2, DCNv2Config
from models.layers.crosses import CrossNetV2, LowRankCrossNet, MixtureCrossNet
from tests.models.inputs import random_inputs

# (rows of the tables, fields, dense features, settings, published total): the BARS benchmark's logs.
PUBLISHED = {
    "frappe_x1": (5_389, 10, 0, {"num_cross_layers": 4, "batch_norm": True}, 458_391),
    "movielenslatest_x1": (90_239, 3, 0, {"num_cross_layers": 5, "batch_norm": True}, 1_243_071),
    "avazu_x1": (1_298_599, 22, 0, {"num_cross_layers": 5, "batch_norm": True}, 13_641_311),
    "criteo_x1": (2_086_303, 26, 13, {"num_cross_layers": 3, "hidden_units": (500,) * 3}, 22_018_021),
    "criteo_x4_001": (
        910_747,
        39,
        0,
        {"embedding_dim": 16, "num_cross_layers": 3, "hidden_units": (1000,) * 5, "batch_norm": True},
        20_382_577,
    ),
    "avazu_x4_001": (
        3_750_975,
        24,
        0,
        {"embedding_dim": 16, "num_cross_layers": 4, "hidden_units": (2000,) * 4},
        73_385_345,
    ),
    "amazon_electronics_x1": (
        63_806,
        4,
        0,
        {
            "embedding_dim": 64,
            "num_cross_layers": 2,
            "hidden_units": (1024, 512, 256),
            "batch_norm": True,
        },
        5_138_561,
    ),
    "crossnet_only_frappe_x1": (
        5_389,
        10,
        0,
        {"structure": "crossnet_only", "num_cross_layers": 4},
        94_391,
    ),
    "crossnet_only_avazu_x1": (
        1_298_599,
        22,
        0,
        {"structure": "crossnet_only", "num_cross_layers": 4},
        13_180_691,
    ),
    "crossnet_only_criteo_x1": (
        2_086_303,
        26,
        13,
        {"structure": "crossnet_only", "num_cross_layers": 5},
        21_626_001,
    ),
    "crossnet_only_movielenslatest_x1": (
        90_239,
        3,
        0,
        {"structure": "crossnet_only", "num_cross_layers": 8},
        909_861,
    ),
}


@pytest.mark.parametrize(("rows", "fields", "dense", "settings", "total"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameter_count_is_the_published_one(
    rows: int, fields: int, dense: int, settings: dict, total: int
) -> None:
    config = DCNv2Config(**{"embedding_dim": 10, "hidden_units": (400,) * 3, **settings})
    with torch.device("meta"):
        component = DCNv2(InputShape(fields, 0, 0, dense, config.embedding_dim), config)
    assert rows * config.embedding_dim + sum(p.numel() for p in component.parameters()) == total


@pytest.mark.parametrize("structure", ["parallel", "stacked", "stacked_parallel", "crossnet_only"])
def test_structures(structure: str) -> None:
    shape = InputShape(num_tokens=2, num_sequences=0, max_length=0, num_dense=1, embedding_dim=4)
    config = DCNv2Config(embedding_dim=4, hidden_units=(6, 5), structure=structure)  # type: ignore[arg-type]
    component = DCNv2(shape, config)
    inputs = random_inputs(shape, 3)
    dense_token = inputs.dense * component.inputs.fields
    x0 = torch.cat([inputs.tokens[:, 0], inputs.tokens[:, 1], dense_token], dim=1)
    crosses = component.crossnet(x0)
    expected = {
        "parallel": lambda: torch.cat([crosses, component.parallel(x0)], dim=1),
        "stacked": lambda: component.stacked(crosses),
        "stacked_parallel": lambda: torch.cat([component.stacked(crosses), component.parallel(x0)], dim=1),
        "crossnet_only": lambda: crosses,
    }[structure]()
    embedding, logit, auxiliary = component(inputs)
    torch.testing.assert_close(embedding, expected)
    torch.testing.assert_close(logit, expected @ component.logit.weight[0])
    assert component.output_dim == {"parallel": 17, "stacked": 5, "stacked_parallel": 10}.get(structure, 12)
    assert auxiliary is None


@pytest.mark.parametrize(
    ("cross", "kind", "num_parameters"),
    [
        ("full", CrossNetV2, 2 * (12 * 12 + 12)),
        ("low_rank", LowRankCrossNet, 2 * (2 * 12 * 3 + 12)),
        # U, V and C of each of 5 experts and one bias in each of 2 layers; 5 gates in all.
        ("mixture", MixtureCrossNet, 2 * (5 * (2 * 12 * 3 + 3 * 3) + 12) + 5 * 12),
    ],
)
@pytest.mark.parametrize("structure", ["parallel", "stacked", "stacked_parallel", "crossnet_only"])
def test_crosses(structure: str, cross: str, kind: type, num_parameters: int) -> None:
    shape = InputShape(num_tokens=3, num_sequences=0, max_length=0, num_dense=0, embedding_dim=4)
    config = DCNv2Config(
        embedding_dim=4,
        hidden_units=(5,),
        structure=structure,
        cross=cross,
        num_cross_layers=2,
        rank=3,
        num_experts=5,
    )
    component = DCNv2(shape, config)
    assert type(component.crossnet) is kind
    assert sum(p.numel() for p in component.crossnet.parameters()) == num_parameters
    assert component(random_inputs(shape, 2)).embedding.shape == (2, component.output_dim)


def test_embeddings_start_as_in_the_benchmark() -> None:
    assert DCNv2Config().embedding_std == 1e-4
