from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.sources.drawn import draw_chunk
from cetnet.trainer.prepare.sources.synthetic_fields import (
    CROSSES,
    FIELD_SIZES,
    TERM_SCALES,
    Fields,
    prepare_synthetic_fields,
)
from tests.trainer.prepare.test_synthetic import normalized_entropy

ROWS = 80_000


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fields") / "out"
    prepare_synthetic_fields(out, rows=ROWS, command="test")
    return out


def test_same_bytes_with_two_workers(out: Path, tmp_path: Path) -> None:
    prepare_synthetic_fields(tmp_path / "two", rows=ROWS, workers=2, command="test")
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert len(files) == 6
    for file in files:
        assert (out / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_rows_do_not_depend_on_the_chunks() -> None:
    fields = Fields(1, ROWS).calibrated()
    assert draw_chunk(fields, 500, 900).slice(100, 50).equals(draw_chunk(fields, 600, 650))


def test_columns(out: Path) -> None:
    schema = read_schema(out / "schema.yaml")
    rows = {split: pq.read_table(out / split) for split in SPLITS}
    assert [rows[split].num_rows for split in SPLITS] == [64_000, 8_000, 8_000]
    times = [time for split in SPLITS for time in rows[split]["timestamp"].to_pylist()]
    assert times == sorted(times)
    owned: dict[str, dict[int, int]] = {"city": {}, "age": {}, "advertiser": {}, "category": {}}
    for row in rows["train"].slice(0, 5_000).to_pylist():
        assert row["user"] == row["user_id"]
        assert row["hour"] == 1 + row["timestamp"] // 3600 % 24
        for field, owner in {"city": "user", "age": "user", "advertiser": "ad", "category": "ad"}.items():
            assert owned[field].setdefault(row[owner], row[field]) == row[field]
    assert schema.tables == {name: size + 1 for name, size in FIELD_SIZES.items()}


def test_ids_are_long_tailed_and_their_numbers_say_nothing_of_it(out: Path) -> None:
    ads = pq.read_table(out / "train", columns=["ad"])["ad"].to_numpy()
    counts = np.bincount(ads, minlength=FIELD_SIZES["ad"] + 1)
    top = np.argsort(-counts)[:100]
    assert counts[top].sum() > 0.4 * len(ads)
    low, high = top.min() / FIELD_SIZES["ad"], top.max() / FIELD_SIZES["ad"]
    assert low < 0.1
    assert high > 0.9


def test_labels_follow_the_probability_and_every_order_matters() -> None:
    fields = Fields(3, 60_000).calibrated()
    columns = fields.draw(np.arange(60_000))
    terms = fields.scaled_terms(columns)
    label = (fields.uniform("click", np.arange(60_000)) < fields.probability(terms)).astype(float)
    best = normalized_entropy(label, 1 / (1 + np.exp(-(fields.bias + terms.sum(axis=1)))))
    assert 0.72 < best < 0.85
    for i, name in enumerate(TERM_SCALES):
        without = terms.copy()
        without[:, i] = 0
        worse = normalized_entropy(label, 1 / (1 + np.exp(-(fields.bias + without.sum(axis=1)))))
        assert worse > best + 0.01, name


def test_terms_are_sums_of_products_one_row_at_a_time() -> None:
    """Against a loop over rows and crosses."""
    fields = Fields(1, 1_000)
    columns = fields.draw(np.arange(20))
    expected = np.zeros((20, len(CROSSES)))
    for order, crosses in enumerate(CROSSES.values()):
        for row in range(20):
            for cross in crosses:
                numbers = [fields.latent(cross, name, columns[name][row : row + 1])[0] for name in cross]
                expected[row, order] += reduce(lambda a, b: a * b, numbers)
    np.testing.assert_allclose(fields.scaled_terms(columns), expected)


def test_impossible(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot draw 10 rows"):
        prepare_synthetic_fields(tmp_path / "out", rows=10)
