"""Numbers that others published of the datasets prepared here: to compare with what comes out.

Sources: the dataset cards, dataset configurations and training logs of BARS (the re-packed sets, `x1` and `x4`),
torchrec (the terabyte) and the papers.
"""

from cetnet.trainer.prepare.engine.card import Published


def _md5(*sums: str) -> dict[str, str]:
    """Of train.csv, test.csv, or of train.csv, valid.csv, test.csv."""
    names = ("train.csv", "valid.csv", "test.csv") if len(sums) == 3 else ("train.csv", "test.csv")
    return dict(zip(names, sums, strict=True))


def _rows(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "validation": validation, "test": test}


AMAZON_ELECTRONICS_X1 = Published(
    "AmazonElectronics_x1 of BARS, where validation is test",
    _rows(2_608_764, 384_806, 384_806),
    {"item_id": 63_003, "cate_id": 803},
    md5=_md5("e9bf80b92985e463db18fdc753d347b5", "57a20e82fe736dd495f2eaf0669bf6d0"),
)
_AVAZU_X4_MD5 = _md5(
    "de3a27264cdabf66adf09df82328ccaa",
    "33232931d84d6452d3f956e936cab2c9",
    "3ebb774a9ca74d05919b84a3d402986d",
)
AVAZU = Published(
    "CETNet's table 2 (40,428,967 rows, 1,544,250 values, the latter of another preparation than the "
    "multi-embedding study's)",
    _rows(32_343_173, 4_042_896, 4_042_898),
    total=1_544_250 + 2 * 22,  # values
)
AVAZU_X1 = Published(
    "Avazu_x1 of BARS, FuxiCTR 1",
    _rows(28_300_276, 4_042_897, 8_085_794),
    total=1_298_599 + 22,  # FuxiCTR 1 has one row less a table
    md5=_md5(
        "f1114a07aea9e996842c71648e0f6395",
        "d9568f246357d156c4b8030fadb8b623",
        "9e2fe9c48705c9315ae7a0953eb57acf",
    ),
)
AVAZU_X4_001 = Published(
    "Avazu_x4_001 of BARS, FuxiCTR 2",
    _rows(32_343_172, 4_042_897, 4_042_898),
    {"device_id": 820_509, "device_ip": 2_903_322},
    total=3_750_999,
    md5=_AVAZU_X4_MD5,
)
AVAZU_X4_002 = Published("Avazu_x4_002 of BARS", _rows(32_343_172, 4_042_897, 4_042_898), md5=_AVAZU_X4_MD5)
_CRITEO_X4_MD5 = _md5(
    "4a53bb7cbc0e4ee25f9d6a73ed824b1a",
    "fba5428b22895016e790e2dec623cb56",
    "cfc37da0d75c4d2d8778e76997df2976",
)
CRITEO = Published(
    "CETNet's table 2 (45,840,617 rows, 2,086,936 values, the latter of another preparation than the "
    "multi-embedding study's)",
    _rows(36_672_493, 4_584_061, 4_584_063),
    total=2_086_936 + 2 * 39,  # values
)
CRITEO_1TB = Published(
    "torchrec's reader of the 24 days",
    {"train": 4_195_197_692},
)
CRITEO_X1 = Published(
    "Criteo_x1 of BARS, FuxiCTR 1",
    _rows(33_003_326, 8_250_124, 4_587_167),
    {
        "C3": 413_424 + 1,
        "C4": 248_543 + 1,
        "C10": 54_712 + 1,
        "C12": 409_749 + 1,
        "C16": 365_811 + 1,
        "C21": 397_981 + 1,
        "C24": 88_608 + 1,
        "C26": 64_073 + 1,
    },
    total=2_086_303 + 26,  # FuxiCTR 1 has one row less a table
    md5=_md5(
        "30b89c1c7213013b92df52ec44f52dc5",
        "f73c71fb3c4f66b6ebdfa032646bea72",
        "2c48b26e84c04a69b948082edae46f8c",
    ),
)
CRITEO_X4_001 = Published(
    "Criteo_x4_001 of BARS, FuxiCTR 1",
    _rows(36_672_493, 4_584_062, 4_584_062),
    total=910_747 + 39,  # FuxiCTR 1 has one row less a table
    md5=_CRITEO_X4_MD5,
)
CRITEO_X4_002 = Published(
    "Criteo_x4_002 of BARS", _rows(36_672_493, 4_584_062, 4_584_062), md5=_CRITEO_X4_MD5
)
FRAPPE_X1 = Published(
    "Frappe_x1 of BARS",
    _rows(202_027, 57_722, 28_860),
    {
        "user": 956,
        "item": 4_084,
        "daytime": 9,
        "weekday": 9,
        "isweekend": 4,
        "homework": 5,
        "cost": 4,
        "weather": 11,
        "country": 82,
        "city": 235,
    },
    md5=_md5(
        "ba7306e6c4fc19dd2cd84f2f0596d158",
        "88d51bf2173505436d3a8f78f2a59da8",
        "3470f6d32713dc5f7715f198ca7c612a",
    ),
)
KUAIVIDEO_X1 = Published(
    "KuaiVideo_x1 of BARS, where validation is test",
    _rows(10_931_092, 2_730_291, 2_730_291),
    {"user_id": 10_002, "item_id": 632_406, "item_emb": 3_242_317},
    md5=_md5("16f13734411532cc313caf2180bfcd56", "ba26c01caaf6c65c272af11aa451fc7a"),
)
MOVIELENS_X1 = Published(
    "MovielensLatest_x1 of BARS",
    _rows(1_404_801, 401_373, 200_686),
    {"user_id": 16_977, "item_id": 23_606, "tag_id": 49_659},
    md5=_md5(
        "efc8bceeaa0e895d566470fc99f3f271",
        "e1930223a5026e910ed5a48687de8af1",
        "54e8c6baff2e059fe067fb9b69e692d0",
    ),
)
TAOBAO_AD_X1 = Published(
    "TaobaoAd_x1 of BARS, where validation is test",
    _rows(21_929_911, 3_099_515, 3_099_515),
    {
        "userid": 403_958,
        "cms_segid": 99,
        "cms_group_id": 15,
        "final_gender_code": 4,
        "age_level": 9,
        "pvalue_level": 6,
        "shopping_level": 5,
        "occupation": 4,
        "new_user_class_level": 7,
        "adgroup_id": 246_851,
        "cate_id": 11_330,
        "campaign_id": 191_771,
        "customer": 132_136,
        "brand": 308_870,
        "pid": 4,
        "btag": 6,
    },
    total=1_295_075,
    md5=_md5("eaabfc8629f23519b04593e26c7522fc", "f5ae6197e52385496d46e2867c1c8da1"),
)
