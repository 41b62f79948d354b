"""The published random splits, against independent implementations of the libraries that made them."""

import tracemalloc

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from cetnet.trainer.prepare.engine.folds import (
    StratifiedSplit,
    TorchSplit,
    stratified_folds,
    torch_random_split,
)


def folds_of_0_19(labels: list[int], folds: int, seed: int) -> list[int]:
    """scikit-learn 0.19.1: a KFold of each class by itself, with the same seed; trimmed where it is too small."""
    result = [-1] * len(labels)
    for label in set(labels):
        members = [row for row, other in enumerate(labels) if other == label]
        places = np.zeros(max(len(members), folds))
        parts = KFold(folds, shuffle=True, random_state=seed).split(places)
        for number, (_, part) in enumerate(parts):
            for place in part:
                if place < len(members):
                    result[members[place]] = number
    return result


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 1), min_size=1, max_size=200), st.integers(2, 12), st.integers(0, 2**31)
)  # classes smaller than the number of folds too
def test_stratified_folds(labels: list[int], folds: int, seed: int) -> None:
    assert stratified_folds(np.array(labels, np.int8), folds, seed).tolist() == folds_of_0_19(
        labels, folds, seed
    )


def test_stratified_folds_have_the_published_sizes() -> None:
    """Of Criteo_x4, scaled down by 1,000 and with its positive rate: 8:1:1, each with that rate."""
    labels = np.zeros(45_840, np.int8)
    labels[:: round(1 / 0.2562)] = 1
    folds = stratified_folds(labels)
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 2
    rates = [labels[folds == fold].mean() for fold in range(10)]
    assert max(rates) - min(rates) < 1e-3


@pytest.mark.parametrize("rows", [10, 1003])
@pytest.mark.parametrize("seed", [0, 5])
def test_torch_random_split(rows: int, seed: int) -> None:
    train, validation = int(rows * 0.8), int(rows * 0.1)
    parts = torch.utils.data.random_split(
        range(rows),  # type: ignore[arg-type]
        (train, validation, rows - train - validation),
        generator=torch.Generator().manual_seed(seed),
    )
    split = torch_random_split(rows, seed)
    for number, part in enumerate(parts):
        assert sorted(part.indices) == np.flatnonzero(split == number).tolist()


@pytest.mark.parametrize(("split", "bytes_a_row"), [(StratifiedSplit(), 9), (TorchSplit(), 4)])
def test_memory_of_a_split(split: StratifiedSplit | TorchSplit, bytes_a_row: int) -> None:
    """The arrays of the main process: numpy's (torch's permutation, 4 bytes a row, is beside them)."""
    rows = 500_000
    chunk = pl.DataFrame({"#label": np.arange(50_000) % 4 == 0, "#row": np.arange(50_000)})
    tracemalloc.start()
    try:
        split.fit(lambda columns: (chunk.select(columns) for _ in range(rows // chunk.height)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / rows < bytes_a_row
