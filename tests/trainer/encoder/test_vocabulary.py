"""Ids of values: as a dict gives them, whatever the texts are and whichever hashes they share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cetnet.trainer.encoder import vocabulary
from cetnet.trainer.encoder.vocabulary import COLUMNS, Vocabulary

TEXTS = st.text(max_size=20)


def _as_dict(values: list[str], ids: list[int], texts: list[str | None]) -> list[int]:
    of = dict(zip(values, ids, strict=True))
    return [0 if text is None else of.get(text, 0) for text in texts]


@given(st.lists(TEXTS, unique=True, max_size=30), st.lists(st.none() | TEXTS, max_size=30), st.data())
def test_ids_are_those_of_a_dict(values: list[str], others: list[str | None], data: st.DataObject) -> None:
    ids = data.draw(st.permutations(range(1, len(values) + 1)))
    texts = [*others, *values, *others]
    found = Vocabulary(pa.array(values, pa.string()), np.array(ids, np.int64)).ids(
        pa.array(texts, pa.string())
    )
    assert found.tolist() == _as_dict(values, list(ids), texts)


def test_values_whose_hashes_are_equal_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        vocabulary, "hash_text", lambda texts: np.array([len(t or "") for t in texts.to_pylist()], np.uint64)
    )
    values, texts = ["aa", "ab", "b", "ac"], ["ac", "ab", "zz", "b", "c", None, "aa", "abc"]
    found = Vocabulary(pa.array(values), np.array([4, 3, 2, 1])).ids(pa.array(texts))
    assert found.tolist() == _as_dict(values, [4, 3, 2, 1], texts)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "item.parquet"
    rows = {"value": ["b", "ä", "10"], "id": [1, 2, 3], "count": [5, 1, 2]}
    pq.write_table(pa.table(rows, schema=COLUMNS), path)
    assert Vocabulary.load(path).ids(pa.array(["10", "a", "ä"])).tolist() == [3, 0, 2]
    pq.write_table(COLUMNS.empty_table(), path)
    assert Vocabulary.load(path).ids(pa.array(["10"])).tolist() == [0]
