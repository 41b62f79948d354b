"""`reviews_<Category>_5.json` and `meta_<Category>.json` as McAuley et al. publish them."""

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cetnet.trainer.encoder.hashing import mix64
from cetnet.trainer.prepare.engine.layout import staging
from cetnet.trainer.prepare.generate.draw import long_tailed

FIRST_DAY, DAYS = 10_957, 5_318  # 1 January 2000 to 23 July 2014
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = ("great", "cable", "works", "don't", "buy", "it's", "sound", "quality", "battery", "price", "died")


def generate_amazon_reviews(
    out: Path, rows: int, seed: int = 1, category: str = "Electronics", gz: bool = False
) -> None:
    """Write about `rows` reviews, 5 or more of each user, and the metas of their items and of others.

    Items are long-tailed; a user mostly reviews items of two categories, in turns. Reviews are in the order
    of their items; times are days, so a user has many reviews at one time. Some metas have no categories,
    price or title; quotes are those of Python's repr. In memory: all reviews, some 100 bytes each.
    """
    with staging(out, overwrite=False) as folder:
        rng = np.random.default_rng([seed % 2**64, 1])
        users, items, cates = max(8, rows // 9), max(40, rows // 25), max(4, min(800, rows // 60))
        cate_of = long_tailed(rng, items, cates)
        user, item, day = _events(rng, users, items, cate_of, rows)
        asins = [_code(seed, 3 * number, "B0", 8) for number in range(items + items // 2)]
        asins[::50] = [f"{mix64(np.array(number))!s:0>10.10}" for number in range(0, len(asins), 50)]
        names = [_code(seed, 7 * number + 1, "A", 12 + number % 2) for number in range(users)]
        suffix = ".json.gz" if gz else ".json"
        order = sorted(range(len(user)), key=lambda n: (asins[item[n]], day[n]))
        reviews = (json.dumps(_review(rng, names[user[n]], asins[item[n]], int(day[n]))) for n in order)
        _write(folder / f"reviews_{category}_5{suffix}", reviews)
        metas = (
            repr(_meta(rng, asins[n], f"{category} {cate_of[n % items]}", category, asins))
            for n in range(len(asins))
        )
        _write(folder / f"meta_{category}{suffix}", metas)


def _events(
    rng: np.random.Generator, users: int, items: int, cate_of: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, item and day of each review; each (user, item) once, 5 or more a user."""
    counts = 5 + rng.geometric(1 / max(1.5, rows / users - 4), users)
    user = np.repeat(np.arange(users), counts)
    by_cate = np.argsort(cate_of, kind="stable")
    sizes = np.bincount(cate_of)
    firsts = sizes.cumsum() - sizes
    liked = cate_of[long_tailed(rng, 2 * users, items)].reshape(users, 2)[
        user, rng.integers(2, size=len(user))
    ]
    within = (rng.random(len(user)) ** 2 * sizes[liked]).astype(np.int64)
    item = np.where(
        rng.random(len(user)) < 0.8, by_cate[firsts[liked] + within], long_tailed(rng, len(user), items)
    )
    joined = DAYS * rng.random(users) ** 0.5
    later = 30 * rng.exponential(1.5, len(user)).astype(np.int64)  # whole months: several reviews a visit
    day = FIRST_DAY + np.minimum(DAYS - 1, joined[user].astype(np.int64) + later)
    _, first = np.unique(user * items + item, return_index=True)
    enough = np.bincount(user[first], minlength=users) >= 5
    kept = first[enough[user[first]]]
    return user[kept], item[kept], day[kept]


def _review(rng: np.random.Generator, user: str, asin: str, day: int) -> dict[str, Any]:
    words = rng.integers(len(WORDS), size=24).tolist()
    review: dict[str, Any] = {"reviewerID": user, "asin": asin, "reviewerName": f'{user[:4]} "{user[-2:]}"'}
    if words[0] == 0:
        del review["reviewerName"]
    seconds = 86_400 * day
    return review | {
        "helpful": words[:2],
        "reviewText": " ".join(WORDS[word] for word in words[2:]),
        "overall": float(1 + words[2] % 5),
        "summary": WORDS[words[3]],
        "unixReviewTime": seconds,
        "reviewTime": time.strftime("%m %d, %Y", time.gmtime(seconds)),
    }


def _meta(rng: np.random.Generator, asin: str, leaf: str, category: str, asins: list[str]) -> dict[str, Any]:
    also = [asins[n] for n in rng.integers(len(asins), size=rng.integers(1, 8))]
    chance = rng.random(5)
    meta: dict[str, Any] = {"asin": asin}
    if chance[0] < 0.95:
        meta["title"] = f'{WORDS[int(chance[1] * len(WORDS))].title()}, 3.5" "it\'s"'
    meta["imUrl"] = f"http://ecx.images-amazon.com/images/I/{asin}.jpg"
    if chance[1] < 0.7:
        meta["price"] = round(5 + 300 * float(chance[2]) ** 3, 2)
    meta["related"] = {"also_viewed": also}
    meta["brand"] = None if chance[3] < 0.1 else leaf
    if chance[4] > 0.05:
        paths = [[category, "Accessories & Supplies", leaf]]
        meta["categories"] = [[category, "Women's"], *paths] if chance[3] < 0.3 else paths
    return meta


def _code(seed: int, number: int, prefix: str, length: int) -> str:
    """A code of a number, the same for equal arguments; two numbers have different ones, nearly surely."""
    value = int(mix64(mix64(np.array(seed % 2**64, np.uint64)) ^ np.array(number, np.uint64)))
    text = ""
    for _ in range(length):
        value, digit = divmod(value, len(DIGITS))
        text += DIGITS[digit]
    return prefix + text


def _write(path: Path, lines: Iterator[str]) -> None:
    with (
        gzip.open(path, "wt", compresslevel=1)
        if path.suffix == ".gz"
        else path.open("w", encoding="utf-8") as file
    ):
        file.writelines(f"{line}\n" for line in lines)
