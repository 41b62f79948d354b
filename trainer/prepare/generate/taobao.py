"""The four files of Taobao's display ads (Alimama), as on https://tianchi.aliyun.com/dataset/56."""

from pathlib import Path

import numpy as np
import polars as pl

from cetnet.trainer.prepare.engine.layout import staging
from cetnet.trainer.prepare.generate.draw import long_tailed
from cetnet.trainer.prepare.sources.taobao import BTAGS, DAY, FIRST_DAY, PROFILE

DAYS, BEHAVIOR_DAYS = 8, 22
PIDS = ("430539_1007", "430548_1007")
CHUNK_ROWS = 1_000_000
VALUES = {"cms_segid": 97, "cms_group_id": 13, "age_level": 7}  # from 0; the others are from 1
LAST = {"final_gender_code": 2, "pvalue_level": 3, "shopping_level": 3, "new_user_class_level": 4}


def generate_taobao_ad(out: Path, rows: int, seed: int = 1, behaviors: int | None = None) -> None:
    """Write `rows` impressions, and 27 times as many behaviours unless `behaviors` says how many.

    A user is interested in three categories: most behaviours are of one of them, and ads of one are clicked five
    times as often. raw_sample is in the order of its ads, behavior_log in none; one in twenty users has no
    profile, half the profiles lack pvalue_level, a third new_user_class_level, a quarter of the ads have brand
    NULL, and one behaviour in fifty is of the same second as an impression of the user. In memory: the impressions.
    """
    with staging(out, overwrite=False) as folder:
        rng = np.random.default_rng([seed % 2**64, 2])
        users, ads, cates = max(20, rows // 23), max(40, rows // 31), max(10, min(13_000, rows // 50))
        brands = max(10, rows // 60)
        user_ids = 1 + rng.permutation(int(users * 1.1))[:users]
        interests = long_tailed(rng, 3 * users, cates).reshape(users, 3)
        cate_of, brand_of = long_tailed(rng, ads, cates), long_tailed(rng, ads, brands)

        user, ad = long_tailed(rng, rows, users), long_tailed(rng, rows, ads)
        interesting = (interests[user] == cate_of[ad, None]).any(axis=1)
        clicked = rng.random(rows) < np.where(interesting, 0.2, 0.04)
        seconds = FIRST_DAY + (rng.random(rows) * DAYS * DAY).astype(np.int64)
        order = np.argsort(ad, kind="stable")
        user, ad, clicked, seconds = user[order], ad[order], clicked[order], seconds[order]
        pl.DataFrame(
            {
                "user": user_ids[user],
                "time_stamp": seconds,
                "adgroup_id": 1 + ad,
                "pid": np.array(PIDS)[rng.integers(2, size=rows)],
                "nonclk": 1 - clicked.astype(np.int8),
                "clk": clicked.astype(np.int8),
            }
        ).write_csv(folder / "raw_sample.csv")

        no_brand = rng.random(ads) < 0.25
        pl.DataFrame(
            {
                "adgroup_id": 1 + np.arange(ads),
                "cate_id": 1 + cate_of,
                "campaign_id": 1 + rng.integers(1 + ads // 2, size=ads),
                "customer": 1 + rng.integers(1 + ads // 4, size=ads),
                "brand": pl.Series(1 + brand_of).set(pl.Series(no_brand), None),
                "price": np.round(np.exp(rng.normal(5, 1.5, ads)), 2),
            }
        ).sample(fraction=1, shuffle=True, seed=seed % 2**32).write_csv(
            folder / "ad_feature.csv", null_value="NULL"
        )
        _write_profiles(folder / "user_profile.csv", rng, user_ids)
        with (folder / "behavior_log.csv").open("wb") as file:
            file.write(b"user,time_stamp,btag,cate,brand\n")
            left = 27 * rows if behaviors is None else behaviors
            while left > 0:
                count = min(left, CHUNK_ROWS)
                left -= count
                who = long_tailed(rng, count, users)
                when = FIRST_DAY + ((DAYS - BEHAVIOR_DAYS * rng.random(count)) * DAY).astype(np.int64)
                same = np.flatnonzero(rng.random(count) < 0.02)
                impression = rng.integers(rows, size=len(same))
                who[same], when[same] = user[impression], seconds[impression]
                liked = interests[who, rng.integers(3, size=count)]
                cate = np.where(rng.random(count) < 0.7, liked, long_tailed(rng, count, cates))
                pl.DataFrame(
                    {
                        "user": user_ids[who],
                        "time_stamp": when,
                        "btag": np.array(list(BTAGS))[np.searchsorted([0.93, 0.96, 0.98], rng.random(count))],
                        "cate": 1 + cate,
                        "brand": 1 + (cate * 7 + long_tailed(rng, count, 20)) % brands,
                    }
                ).write_csv(file, include_header=False)


def _write_profiles(path: Path, rng: np.random.Generator, user_ids: np.ndarray) -> None:
    """Nineteen of twenty users, in the order of their ids; the last name of the header ends with a blank."""
    known = np.sort(user_ids[np.arange(len(user_ids)) % 20 != 13])
    profile = pl.DataFrame({"userid": known})
    for name in PROFILE:
        first = 0 if name in VALUES or name == "occupation" else 1
        size = VALUES.get(name) or LAST.get(name, 2)
        values = pl.Series(name, first + long_tailed(rng, len(known), size))
        empty = {"pvalue_level": 0.54, "new_user_class_level": 0.32}.get(name, 0.0)
        profile = profile.with_columns(values.set(pl.Series(rng.random(len(known)) < empty), None))
    with path.open("wb") as file:
        file.write((",".join(profile.columns) + " \n").encode())
        profile.write_csv(file, include_header=False)
