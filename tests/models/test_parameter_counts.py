"""Parameters of whole models, tables included, equal to those that published training logs print.

The counts are BARS' (https://github.com/reczoo/BARS), for the settings and vocabularies published there. Nothing is
allocated: everything is on the meta device.
"""

from pathlib import Path
from typing import Any

import pytest

from models.cetnet import CETNet
from models.config import CETNetConfig
from models.schema import Schema

SCHEMAS = Path(__file__).parents[2] / "benchmarks" / "schemas"
AMAZON = {"embedding_dim": 64, "hidden_units": [1024, 512, 256]}
KUAI = AMAZON
TAOBAO = {"embedding_dim": 32, "hidden_units": [512, 256, 128]}
X1 = {"embedding_dim": 10, "hidden_units": [400, 400, 400]}
X4 = {"embedding_dim": 16, "hidden_units": [1000] * 5}
BN = {"batch_norm": True}
MASKNET = {"embedding_norm": False}
CROSS_ONLY = {"embedding_dim": 10, "structure": "crossnet_only"}
CIN_ONLY = {"embedding_dim": 10, "hidden_units": []}
DICE_512 = {"attention_units": [512, 256], "attention_activation": "dice"}
DICE_256 = {"attention_units": [256, 128], "attention_activation": "dice"}
RELU_512 = {"attention_units": [512, 256], "attention_activation": "relu"}

COUNTS: list[tuple[str, str, dict[str, Any], int]] = [
    ("amazon_electronics", "dnn", AMAZON | BN, 5_006_721),
    ("amazon_electronics", "dcnv2", AMAZON | BN | {"num_cross_layers": 2}, 5_138_561),
    ("amazon_electronics", "xdeepfm", AMAZON | BN | {"cin_units": [256] * 3}, 5_664_254),
    ("amazon_electronics", "din", AMAZON | BN | DICE_512 | {"activation": "dice"}, 5_403_522),
    ("amazon_electronics", "dien", AMAZON | BN | DICE_256, 5_369_602),
    (
        "amazon_electronics",
        "dmin",
        AMAZON | BN | DICE_256 | {"bn_only_once": True, "num_heads": 8, "refiner": True, "position_dim": 4},
        8_107_401,
    ),
    ("taobao_ad", "dnn", TAOBAO, 41_934_977),
    ("taobao_ad", "dcnv2", TAOBAO | {"num_cross_layers": 4}, 43_576_577),
    ("taobao_ad", "xdeepfm", TAOBAO | {"cin_units": [16]}, 43_556_692),
    ("taobao_ad", "din", TAOBAO | RELU_512 | {"activation": "relu", "softmax": False}, 42_263_682),
    ("taobao_ad", "dien", TAOBAO | DICE_512, 42_376_194),
    (
        "taobao_ad",
        "dmin",
        TAOBAO | RELU_512 | {"num_heads": 1, "refiner": False, "position_dim": 4},
        42_347_786,
    ),
    ("kuaivideo", "dnn", KUAI, 42_242_561),
    ("kuaivideo", "dcnv2", KUAI | BN | {"num_cross_layers": 2}, 42_648_897),
    ("kuaivideo", "din", KUAI | RELU_512 | {"activation": "dice", "softmax": False}, 43_032_835),
    (
        "kuaivideo",
        "dien",
        KUAI | {"attention_units": [256, 256], "attention_activation": "dice"},
        43_034_627,
    ),
    (
        "kuaivideo",
        "dmin",
        KUAI | RELU_512 | {"activation": "dice", "num_heads": 2, "refiner": False, "position_dim": 0},
        44_479_237,
    ),
    ("criteo_x1", "dnn", X1, 21_340_761),
    ("criteo_x1", "ipnn", X1 | BN, 21_639_561),
    ("criteo_x1", "dcnv2", X1 | {"hidden_units": [500] * 3, "num_cross_layers": 3}, 22_018_021),
    ("criteo_x1", "dcnv2", CROSS_ONLY | {"num_cross_layers": 5}, 21_626_001),
    ("criteo_x1", "xdeepfm", X1 | {"cin_units": [16, 16]}, 23_461_462),
    ("criteo_x1", "xdeepfm", CIN_ONLY | {"cin_units": [32] * 5}, 23_158_213),
    ("avazu_x1", "dnn", X1, 13_395_591),
    ("avazu_x1", "ipnn", X1, 13_487_991),
    ("avazu_x1", "dcnv2", X1 | BN | {"num_cross_layers": 5}, 13_641_311),
    ("avazu_x1", "dcnv2", CROSS_ONLY | {"num_cross_layers": 4}, 13_180_691),
    ("avazu_x1", "xdeepfm", X1 | BN | {"cin_units": [64]}, 14_727_695),
    ("avazu_x1", "xdeepfm", CIN_ONLY | {"cin_units": [64] * 3}, 14_496_174),
    ("frappe", "ipnn", X1, 433_491),
    ("frappe", "dcnv2", X1 | BN | {"num_cross_layers": 4}, 458_391),
    ("frappe", "dcnv2", CROSS_ONLY | {"num_cross_layers": 4}, 94_391),
    ("frappe", "xdeepfm", X1 | BN | {"cin_units": [64]}, 429_809),
    ("movielens", "ipnn", X1, 1_237_191),
    ("movielens", "dcnv2", X1 | BN | {"num_cross_layers": 5}, 1_243_071),
    ("movielens", "dcnv2", CROSS_ONLY | {"num_cross_layers": 8}, 909_861),
    ("movielens", "xdeepfm", X1 | {"cin_units": [64] * 3}, 1_351_767),
    ("movielens", "xdeepfm", CIN_ONLY | {"cin_units": [32] * 4}, 1_002_390),
    ("criteo_x4", "dcnv2", X4 | BN | {"num_cross_layers": 3}, 20_382_577),
    ("frappe", "masknet", X1 | MASKNET | {"num_blocks": 3, "block_dim": 50, "reduction_ratio": 2}, 571_691),
    ("criteo_x1", "masknet", X1 | MASKNET | {"structure": "serial", "reduction_ratio": 0.2}, 21_530_629),
    (
        "avazu_x1",
        "masknet",
        X1 | {"structure": "serial", "reduction_ratio": 2, "embedding_norm": True},
        14_585_891,
    ),
    ("movielens", "masknet", X1 | MASKNET | {"structure": "serial", "reduction_ratio": 4}, 2_624_541),
    (
        "criteo_x4",
        "masknet",
        X4 | MASKNET | {"block_norm": False, "num_blocks": 2, "block_dim": 500, "reduction_ratio": 0.1},
        20_358_077,
    ),
    (
        "criteo_x4",
        "finalmlp",
        X4 | {"hidden_units2": [500], "num_heads": 50, "feature_selection": False},
        19_524_954,
    ),
    ("avazu_x4", "dcnv2", X4 | {"hidden_units": [2000] * 4, "num_cross_layers": 4}, 73_385_345),
    ("avazu_x4", "ipnn", X4 | {"hidden_units": [1000] * 3}, 62_679_601),
]


def num_parameters(schema: Schema, kind: str, settings: dict[str, Any]) -> int:
    config = CETNetConfig.model_validate({"components": {"model": {"kind": kind, **settings}}})
    # All tables dense: a sharded table's width is rounded up to what its kernels need.
    model = CETNet(schema, config, is_dense=lambda _: True, table_device="meta", device="meta")
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("dataset", "kind", "settings", "published"), COUNTS, ids=[f"{d}-{k}-{n}" for d, k, _, n in COUNTS]
)
def test_equal_to_the_published_count(
    dataset: str, kind: str, settings: dict[str, Any], published: int
) -> None:
    assert num_parameters(Schema.load(SCHEMAS / f"{dataset}.yaml"), kind, settings) == published


SELECTED = {"selection_units": [800]}
FINALMLP: list[tuple[str, dict[str, Any], int]] = [
    (
        "criteo_x1",
        {
            "hidden_units2": [1000],
            "num_heads": 200,
            "context1": [f"I{i}" for i in range(1, 14)],
            "context2": ["C6"],
        },
        22_478_162,
    ),
    ("avazu_x1", {"hidden_units2": [800], "num_heads": 10}, 13_979_472),
    ("movielens", {"hidden_units": [400], "hidden_units2": [800], "num_heads": 10}, 1_040_902),
    (
        "frappe",
        {
            "hidden_units": [400],
            "hidden_units2": [100],
            "num_heads": 5,
            "selection_units": [400],
            "context1": ["user"],
            "context2": ["item"],
        },
        253_392,
    ),
]


@pytest.mark.parametrize(("dataset", "settings", "published"), FINALMLP, ids=[d for d, _, _ in FINALMLP])
def test_finalmlp_whose_vocabularies_have_a_row_more(
    dataset: str, settings: dict[str, Any], published: int
) -> None:
    schema = Schema.load(SCHEMAS / f"{dataset}.yaml")
    schema = schema.model_copy(update={"tables": {name: rows + 1 for name, rows in schema.tables.items()}})
    both = {"batch_norm": True, "batch_norm2": True}
    assert num_parameters(schema, "finalmlp", X1 | SELECTED | both | settings) == published


@pytest.mark.parametrize(
    ("dataset", "hidden", "published"),
    [("frappe", X1 | BN, 781_892), ("movielens", X1 | BN, 1_574_392), ("criteo_x1", X1, 21_818_362)],
)
def test_dnn_logs_that_count_the_mlp_twice(dataset: str, hidden: dict[str, Any], published: int) -> None:
    schema = Schema.load(SCHEMAS / f"{dataset}.yaml")
    total = num_parameters(schema, "dnn", hidden)
    tables = 10 * (sum(schema.tables.values()) + len(schema.dense_features))
    assert total + (total - tables) == published
