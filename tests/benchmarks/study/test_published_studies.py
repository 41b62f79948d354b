"""The studies of this repository: every variant is a valid configuration, and every model can be built."""

from pathlib import Path

import pytest
import yaml

from cetnet.benchmarks.study.definition import Run, Study, runs_of
from cetnet.trainer.config import load_config
from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.session import build_model
from tests.paths import SCHEMAS
from tests.paths import STUDIES as FOLDER

STUDIES = sorted(FOLDER.glob("*.yaml"))

TABLE1 = """xdeepfm dcnv2 dhen wukong din dien cetnet_din_dien interformer
cetnet_if_if cetnet_if_dcnv2 cetnet_if_dhen"""
TABLE3 = """full without_confidence without_kl without_multi_embedding without_gradient_stop single_embedding_concat
multi_embedding_concat"""

TUNED = ["table1_amazon_toys"]
"""Those with models beyond the paper's."""

TOTALS = {
    "amazon_electronics": (4, 63_806),
    "taobao_ad": (20, 1_295_075),
    "kuaivideo": (7, 10_002 + 632_406 + 3_242_317),
    "criteo_x1": (39, 2_086_303),
    "criteo_x4": (39, 910_747),
    "criteo": (39, 2_086_936),
    "avazu_x1": (22, 1_298_599),
    "avazu_x4": (24, 3_750_975),
    "avazu": (22, 1_544_250),
    "frappe": (10, 5_389),
    "movielens": (3, 90_239),
}
"""Published numbers of features and of rows of all tables."""


def first_runs(path: Path) -> list[Run]:
    """A run of each variant."""
    study = Study.load(path)
    return [run for run in runs_of(study, path) if run.seed == study.seeds[0]]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_variant_is_valid(path: Path) -> None:
    study = Study.load(path)
    assert study.name == path.stem
    assert study.data_schema is not None
    configs = {run.variant: load_config(run.base, run.overrides) for run in first_runs(path)}
    assert list(configs) == list(study.variants)
    # Components that are compared see the same rows in the same order, and early stopping the same metric.
    assert len({(c.data.path, c.data.batch_size, c.training.epochs) for c in configs.values()}) == 1


@pytest.mark.parametrize(
    "path",
    [path for path in STUDIES if not path.stem.startswith(("table4", "embedding_scaling"))],
    ids=lambda path: path.stem,
)
def test_every_model_can_be_built(path: Path) -> None:
    """Without memory for parameters. Table 4 and embedding_scaling have the models of table 5."""
    study = Study.load(path)
    schema = read_schema(path.parent / str(study.data_schema))
    for run in first_runs(path):
        build_model(load_config(run.base, run.overrides), schema, "meta")


def test_every_table_of_the_paper_has_its_studies() -> None:
    names = {path.stem: list(Study.load(path).variants) for path in STUDIES}
    for data in ("amazon_electronics", "taobao_ad", "kuaivideo", "ebnerd", "amazon_sports", "amazon_toys"):
        assert set(TABLE1.split()) <= set(names[f"table1_{data}"])
        assert names[f"table3_{data}"] == TABLE3.split()
    methods = [f"_{method}_{times}x" for method in ("se", "me", "sum", "concat") for times in (2, 3, 4, 10)]
    grid = [
        backbone + method for backbone in ("dnn", "ipnn", "dcnv2", "finalmlp") for method in ("", *methods)
    ]
    for table in (4, 5):
        for data in ("criteo", "avazu"):
            assert names[f"table{table}_{data}"] == grid
    assert {"figure2", "figure3"} <= set(names)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_table_of_the_paper_shows_all_its_numbers(path: Path) -> None:
    study = Study.load(path)
    if path.stem.startswith("table"):
        assert study.paper is not None
        assert set(study.paper.numbers) <= set(study.variants)
        assert (set(study.paper.numbers) < set(study.variants)) == (path.stem in TUNED)


def test_embeddings_of_the_multi_embedding_study_have_the_size_that_their_name_says() -> None:
    for run in first_runs(FOLDER / "table5_criteo.yaml"):
        components = load_config(run.base, run.overrides).model.components.values()
        times = int(run.variant.rsplit("_", 1)[1][:-1]) if "_" in run.variant else 1
        assert sum(component.embedding_dim for component in components) == 10 * times
        assert len(components) == (1 if "_se_" in run.variant else times)


@pytest.mark.parametrize("name", TOTALS)
def test_schemas_have_the_published_sizes(name: str) -> None:
    schema = read_schema(SCHEMAS / f"{name}.yaml")
    assert (len(schema.features), sum(schema.tables.values())) == TOTALS[name]


def test_published_sizes_of_single_tables() -> None:
    tables = {
        name: yaml.safe_load((SCHEMAS / f"{name}.yaml").read_text())["tables"]
        for name in ("amazon_electronics", "kuaivideo", "criteo_x1", "avazu_x4")
    }
    assert tables["amazon_electronics"] == {"item_id": 63_003, "cate_id": 803}
    assert tables["kuaivideo"] == {"user_id": 10_002, "item_id": 632_406, "item_emb": 3_242_317}
    assert tables["criteo_x1"]["C6"] == 22
    assert (tables["avazu_x4"]["device_ip"], tables["avazu_x4"]["device_id"]) == (2_903_321, 820_508)
