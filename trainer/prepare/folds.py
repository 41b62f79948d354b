"""Published random splits, row for row."""

import numpy as np

STRATIFIED_SEED = 2018


def stratified_folds(labels: np.ndarray, folds: int = 10, seed: int = STRATIFIED_SEED) -> np.ndarray:
    """The fold (int8) of each row, as of `StratifiedKFold(folds, shuffle=True, random_state=seed)`.

    In scikit-learn 0.19.1, which the x4 splits were made with: the rows of each class are shuffled with the
    same fresh seed, and cut into folds one after the other, of which the first are one row larger.
    (Since 0.22 classes are interleaved otherwise.) `labels` [rows] are any numbers. Memory: 13 bytes a row.
    """
    result = np.empty(len(labels), np.int8)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.arange(max(len(members), folds), dtype=np.int32)
        np.random.RandomState(seed).shuffle(order)  # the generator of that time
        fold = np.empty(len(order), np.int8)
        for number, part in enumerate(np.array_split(order, folds)):
            fold[part] = number
        result[members] = fold[: len(members)]
    return result


def torch_random_split(rows: int, seed: int = 0) -> np.ndarray:
    """Index into SPLITS (int8) of each row, as of `torch.utils.data.random_split` into 80 %, 10 % and the rest.

    The generator is torch's with `manual_seed(seed)`; train and validation are rounded down. Memory: 9 bytes
    a row.
    """
    import torch  # torch is for its generator alone, and slow to import

    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).numpy()
    train, validation = int(rows * 0.8), int(rows * 0.1)
    result = np.full(rows, 2, np.int8)
    result[order[:train]] = 0
    result[order[train : train + validation]] = 1
    return result
