"""Untrained predictions lie around the base rate."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cetnet.models.schema import Feature, Schema
from cetnet.trainer import base_rate as module
from cetnet.trainer.base_rate import base_rate
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.yaml_files import save_yaml

SCHEMA = {"label": "y", "tables": {"x": 2}, "features": (Feature(name="x", kind="categorical"),)}
LABELS = st.sampled_from([0.0, 1.0, None])
WEIGHTS = st.sampled_from([0.0, 0.5, 2.0, None, math.nan, -1.0])
GROUPS = st.lists(st.lists(st.tuples(LABELS, WEIGHTS), min_size=1, max_size=5), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(groups=GROUPS)
def test_it_is_the_weighted_share_of_the_positives(
    groups: list[list[tuple[float | None, float | None]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("data")
    save_yaml(path / "schema.yaml", Schema(weight="w", **SCHEMA))
    (path / "train").mkdir()
    kinds = pa.schema({"y": pa.float32(), "w": pa.float32(), "x": pa.int32()})
    with pq.ParquetWriter(path / "train" / "part.parquet", kinds) as writer:
        for rows in groups:
            labels, weights = map(list, zip(*rows, strict=True))
            writer.write_table(pa.table([labels, weights, [0] * len(rows)], schema=kinds))
    good = [
        (y, w) for rows in groups for y, w in rows if y is not None and w is not None and w >= 0 and w == w
    ]
    positive, total = sum(y * w for y, w in good), sum(w for _, w in good)
    expected = positive / total if 0 < positive < total else None
    assert base_rate(Dataset(path, "train", "quarantine")) == (expected and pytest.approx(expected))


def test_of_a_large_split_row_groups_from_all_over_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_yaml(tmp_path / "schema.yaml", Schema(**SCHEMA))
    (tmp_path / "train").mkdir()
    clicks = np.repeat(np.arange(100) % 10 == 0, 10).astype(np.int8)  # a row group of clicks in ten
    clicks[::10] = 1
    pq.write_table(
        pa.table({"y": clicks, "x": np.zeros(1000, int)}),
        tmp_path / "train" / "part.parquet",
        row_group_size=10,
    )
    monkeypatch.setattr(module, "_ROWS", 205)
    dataset = Dataset(tmp_path, "train")
    read: list[int] = []
    whole = dataset.label_and_weight
    monkeypatch.setattr(dataset, "label_and_weight", lambda group: read.append(group.index) or whole(group))
    rate = base_rate(dataset)
    assert len(read) == 21
    assert (read[0], read[-1]) == (0, 99)
    assert rate == pytest.approx(np.mean([clicks[10 * i : 10 * i + 10].mean() for i in read]))
