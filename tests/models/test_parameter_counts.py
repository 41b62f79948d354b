"""Parameters of whole models, tables included, equal to those that published training logs print.

The counts are BARS' (https://github.com/reczoo/BARS), for the settings and vocabularies published there. Nothing is
allocated: everything is on the meta device. Of FinalMLP's logs the vocabularies have a row more per feature
(`<dataset>+1`); some of DNN count the MLP twice, which is taken back here.
"""

from typing import Any

import pytest

from cetnet.models.cetnet import CETNet
from cetnet.models.config import CETNetConfig
from cetnet.trainer.data.dataset import read_schema
from tests.paths import SCHEMAS

AMAZON = {"embedding_dim": 64, "hidden_units": [1024, 512, 256]}
KUAI = AMAZON
TAOBAO = {"embedding_dim": 32, "hidden_units": [512, 256, 128]}
X1 = {"embedding_dim": 10, "hidden_units": [400, 400, 400]}
X4 = {"embedding_dim": 16, "hidden_units": [1000] * 5}
BN = {"batch_norm": True}
MASKNET = {"embedding_norm": False}
CROSS_ONLY = {"embedding_dim": 10, "structure": "crossnet_only"}
CIN_ONLY = {"embedding_dim": 10, "hidden_units": []}
FM = {"embedding_dim": 10}
FINALMLP = X1 | BN | {"batch_norm2": True, "selection_units": [800]}
CRITEO_CONTEXTS = {"context1": [f"I{i}" for i in range(1, 14)], "context2": ["C6"]}
FRAPPE_CONTEXTS = {"context1": ["user"], "context2": ["item"]}
CRITEO_TABLES, FRAPPE_TABLES, MOVIELENS_TABLES = 20_863_160, 53_890, 902_390
DICE_512 = {"attention_units": [512, 256], "attention_activation": "dice"}
DICE_256 = {"attention_units": [256, 128], "attention_activation": "dice"}
RELU_512 = {"attention_units": [512, 256], "attention_activation": "relu"}

COUNTS: list[tuple[str, str, dict[str, Any], int]] = [
    ("amazon_electronics", "dnn", AMAZON | BN, 5_006_721),
    ("amazon_electronics", "dcn", AMAZON | {"num_cross_layers": 6}, 5_006_465),
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
    ("criteo_x1", "dnn", X1, (21_818_362 + CRITEO_TABLES) // 2),
    ("criteo_x1", "dcn", X1 | {"num_cross_layers": 3}, 21_343_491),
    ("criteo_x1", "fm", FM, 22_949_477),
    ("criteo_x1", "deepfm", X1 | BN, 23_429_477),
    ("criteo_x1", "wide_deep", X1 | BN, 23_429_477),
    (
        "criteo_x1+1",
        "finalmlp",
        FINALMLP | CRITEO_CONTEXTS | {"hidden_units2": [1000], "num_heads": 200},
        22_478_162,
    ),
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
    ("avazu_x1+1", "finalmlp", FINALMLP | {"hidden_units2": [800], "num_heads": 10}, 13_979_472),
    ("frappe", "dnn", X1 | BN, (781_892 + FRAPPE_TABLES) // 2),
    ("frappe", "fm", FM, 59_280),
    ("frappe", "deepfm", X1 | BN, 423_280),
    (
        "frappe+1",
        "finalmlp",
        FINALMLP
        | {
            "hidden_units": [400],
            "hidden_units2": [100],
            "num_heads": 5,
            "selection_units": [400],
            **FRAPPE_CONTEXTS,
        },
        253_392,
    ),
    ("frappe", "ipnn", X1, 433_491),
    ("frappe", "dcnv2", X1 | BN | {"num_cross_layers": 4}, 458_391),
    ("frappe", "dcnv2", CROSS_ONLY | {"num_cross_layers": 4}, 94_391),
    ("frappe", "xdeepfm", X1 | BN | {"cin_units": [64]}, 429_809),
    ("movielens", "dnn", X1 | BN, (1_574_392 + MOVIELENS_TABLES) // 2),
    ("movielens", "dcn", X1 | BN | {"num_cross_layers": 4}, 1_238_661),
    (
        "movielens+1",
        "finalmlp",
        FINALMLP | {"hidden_units": [400], "hidden_units2": [800], "num_heads": 10},
        1_040_902,
    ),
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


@pytest.mark.parametrize(
    ("dataset", "kind", "settings", "published"), COUNTS, ids=[f"{d}-{k}-{n}" for d, k, _, n in COUNTS]
)
def test_equal_to_the_published_count(
    dataset: str, kind: str, settings: dict[str, Any], published: int
) -> None:
    name, _, more = dataset.partition("+")
    schema = read_schema(SCHEMAS / f"{name}.yaml")
    tables = {table: rows + int(more or 0) for table, rows in schema.tables.items()}
    config = CETNetConfig.model_validate({"components": {"model": {"kind": kind, **settings}}})
    # All tables dense: a sharded table's width is rounded up to what its kernels need.
    model = CETNet(
        schema.model_copy(update={"tables": tables}),
        config,
        is_dense=lambda _: True,
        table_device="meta",
        device="meta",
    )
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == published
