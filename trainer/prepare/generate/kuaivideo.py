"""ALPINE's files of Kuaishou's short videos: six pickles in `dataset.pkl`, and vectors of videos and users."""

import pickle
from pathlib import Path

import numpy as np

from cetnet.trainer.prepare.engine.layout import staging
from cetnet.trainer.prepare.generate.draw import long_tailed

TOPICS, SIZE = 12, 64
TRAIN_SHARE = 0.8


def generate_kuaivideo(out: Path, rows: int, seed: int = 1) -> None:
    """Write `rows` samples, four fifths of them train, by time for each user.

    A user likes two topics, and a video's vector lies near its topic's: videos of liked topics are clicked rather.
    A user's pos_seq and neg_seq are all videos clicked and passed over, in time order, those of test too; a sample
    says how many of them were before it. Samples are in no order; several have the same time. In memory: all
    samples as Python objects, some 500 bytes each.
    """
    with staging(out, overwrite=False) as folder:
        rng = np.random.default_rng([seed % 2**64, 3])
        users, items = max(10, min(10_000, rows // 150)), max(50, rows // 4)
        topic = rng.integers(TOPICS, size=items)
        centres = rng.normal(size=(TOPICS, SIZE))
        vectors = (centres[topic] + rng.normal(scale=0.7, size=(items, SIZE))).astype(np.float32)
        likes = rng.integers(TOPICS, size=(users, 2))
        user, item = long_tailed(rng, rows, users), long_tailed(rng, rows, items)
        liked = (topic[item, None] == likes[user]).any(axis=1)
        click = rng.random(rows) < np.where(liked, 0.6, 0.12)
        extra = [click & (rng.random(rows) < share) for share in (0.05, 0.02)]
        time = rng.integers(10_000, 10_000 + 2 * rows, rows)

        order = np.lexsort((time, user))
        sequences: list[list[list[int]]] = [[[] for _ in range(users)] for _ in range(2)]
        seen = np.bincount(user, minlength=users)
        splits: list[list[tuple[tuple[int, ...], int, int]]] = [[], []]
        number = 0
        for position, row in enumerate(order.tolist()):
            owner = int(user[row])
            number = number + 1 if position and user[order[position - 1]] == owner else 0
            pos, neg = sequences[0][owner], sequences[1][owner]
            shown = (
                owner,
                int(item[row]),
                int(click[row]),
                int(extra[0][row]),
                int(extra[1][row]),
                int(time[row]),
            )
            splits[int(number >= TRAIN_SHARE * seen[owner])].append((shown, len(pos), len(neg)))
            (pos if click[row] else neg).append(shown[1])
        splits = [[samples[n] for n in rng.permutation(len(samples))] for samples in splits]
        edges = [[[owner, *sequence[:3]] for owner, sequence in enumerate(of_kind)] for of_kind in sequences]
        with (folder / "dataset.pkl").open("wb") as file:
            for content in (*splits, *sequences, *edges):
                pickle.dump(content, file, protocol=3)
        np.save(folder / "visual64_select.npy", vectors)
        np.save(folder / "user_like.npy", centres[likes].mean(axis=1).astype(np.float32))
