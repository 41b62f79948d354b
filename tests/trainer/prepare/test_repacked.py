"""The re-packed files of MovieLens, Frappe and the sets with histories, against plain Python."""

import csv
import hashlib
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine import preparation
from cetnet.trainer.prepare.generate.movielens import generate_movielens_x1
from cetnet.trainer.prepare.generate.sequences import (
    generate_amazon_electronics_x1,
    generate_kuaivideo_x1,
    generate_taobao_ad_x1,
)
from cetnet.trainer.prepare.sources import published
from cetnet.trainer.prepare.sources.repacked import (
    FRAPPE,
    PROFILE,
    prepare_amazon_electronics_x1,
    prepare_frappe_x1,
    prepare_kuaivideo_x1,
    prepare_movielens,
    prepare_taobao_ad_x1,
)
from tests.paths import SCHEMAS
from tests.trainer.prepare.slow import Rows, check_like, check_prepared

ENGINE: dict[str, Any] = {"command": "prepare", "workers": 1}
FILES = {"train": "train.csv", "validation": "valid.csv", "test": "test.csv"}


def read(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_movielens(tmp_path: Path) -> None:
    generate_movielens_x1(tmp_path / "raw", 3_000)
    schema = prepare_movielens(tmp_path / "raw", tmp_path / "out", **ENGINE)
    check_prepared(
        tmp_path / "out", {split: read(tmp_path / "raw" / name) for split, name in FILES.items()}, 1
    )
    check_like(schema, SCHEMAS / "movielens.yaml")


def test_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    generate_movielens_x1(raw, 300)
    sums = {name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name in FILES.values()}
    known = replace(published.MOVIELENS_X1, md5=sums | {"test.csv": "0" * 32})
    monkeypatch.setattr(published, "MOVIELENS_X1", known)
    prepare_movielens(raw, out, **ENGINE)
    card = (out / "README.md").read_text()
    for name in ("train.csv", "valid.csv"):
        assert f"md5 of {name}: the published one ({sums[name]})" in card
    assert f"md5 of test.csv: {sums['test.csv']}, not the published {'0' * 32}: this is another file" in card

    monkeypatch.setattr(preparation, "type_rows", pytest.fail)
    # Nor is anything else read before these are found.
    monkeypatch.setattr(preparation, "hash_file", pytest.fail)
    with pytest.raises(UserError, match="exists already"):
        prepare_movielens(raw, out, **ENGINE)
    with pytest.raises(UserError, match="give a size such as 4GB"):
        prepare_movielens(raw, tmp_path / "new", memory="4", **ENGINE)


def test_frappe(tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = {
        split: [
            {"label": str(draw.randint(0, 1))} | {name: str(draw.randint(0, 30)) for name in FRAPPE}
            for _ in range(200)
        ]
        for split in FILES
    }
    for split, name in FILES.items():
        lines = [",".join(row.values()) for row in rows[split]]
        (tmp_path / name).write_text("\n".join([",".join(("label", *FRAPPE)), *lines]) + "\n")
    schema = prepare_frappe_x1(tmp_path, tmp_path / "out", **ENGINE)
    for split in rows:
        rows[split] = [row | {"user_id": row["user"]} for row in rows[split]]
    check_prepared(tmp_path / "out", rows, 1)
    check_like(schema, SCHEMAS / "frappe.yaml")


def amazon_rows(path: Path, keep: str) -> Rows:
    rows = read(path)
    for row in rows:
        for name in ("item_history", "cate_history"):
            events = row[name].split("^")
            row[f"whole {name}"] = events
            row[name] = events[:100] if keep == "oldest" else events[-100:]
    return rows


@pytest.mark.parametrize(("split", "keep"), [("bars", "oldest"), ("clean", "oldest"), ("clean", "recent")])
def test_amazon_electronics(split: Any, keep: Any, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    generate_amazon_electronics_x1(raw, 3_000)
    long = "^".join(str(i) for i in range(150))
    with (raw / "train.csv").open("a") as file:  # a user of many reviews, and one of a single one
        for end in (149, 150):
            history = "^".join(long.split("^")[:end])
            file.write(f"1,99999,{end},3,{history},{history}\n0,99999,7,3,{history},{history}\n")
        file.write("1,99998,5,3,9,3\n0,99998,6,3,9,3\n")
    schema = prepare_amazon_electronics_x1(raw, tmp_path / "out", split, keep, **ENGINE)
    train, test = amazon_rows(raw / "train.csv", keep), amazon_rows(raw / "test.csv", keep)
    expected = {"train": train, "validation": test, "test": test}
    if split == "clean":
        lengths = defaultdict(set)
        for row in train:
            lengths[row["user_id"]].add(len(row["whole item_history"]))
        last = [
            len(lengths[row["user_id"]]) > 1
            and len(row["whole item_history"]) == max(lengths[row["user_id"]])
            for row in train
        ]
        expected["train"] = [row for row, held in zip(train, last, strict=True) if not held]
        expected["validation"] = [row for row, held in zip(train, last, strict=True) if held]
        assert len({row["user_id"] for row in expected["validation"]}) == len(lengths) - 1
    check_prepared(tmp_path / "out", expected, 1)
    check_like(schema, SCHEMAS / "amazon_electronics.yaml")
    assert ("tuned on test" in (tmp_path / "out/README.md").read_text()) == (split == "bars")


@pytest.mark.parametrize("split", ["bars", "clean"])
def test_taobao_ad(split: Any, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    generate_taobao_ad_x1(raw, 2_400)
    schema = prepare_taobao_ad_x1(raw, tmp_path / "out", split, **ENGINE)
    files: dict[str, Rows] = {}
    for name in ("train", "test"):
        files[name] = read(raw / f"{name}.csv")
        for row in files[name]:
            row["group_id"], row["price"] = row["userid"], float(row["price"])
            histories = {
                key: [v for v in row[key].split("^") if v] for key in ("cate_his", "brand_his", "btag_his")
            }
            longest = max(map(len, histories.values()))
            row |= {key: [None] * (longest - len(events)) + events for key, events in histories.items()}
            row |= {key: row[key] for key in PROFILE}
    assert any(None in row["brand_his"] for row in files["train"])
    assert any(row["cate_his"] == [] for row in files["train"])
    assert any(row["pvalue_level"] == "0" for row in files["train"])
    held = len(files["train"]) // 10 if split == "clean" else 0
    check_prepared(
        tmp_path / "out",
        {
            "train": files["train"][: len(files["train"]) - held],
            "validation": files["train"][-held:] if held else files["test"],
            "test": files["test"],
        },
        10,
    )
    check_like(schema, SCHEMAS / "taobao_ad.yaml")


@pytest.mark.parametrize(("split", "vectors"), [("bars", "h5"), ("clean", "npy")])
def test_kuaivideo(split: Any, vectors: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    generate_kuaivideo_x1(raw, 3_000)
    files = {name: read(raw / f"{name}.csv") for name in ("train", "test")}
    items = sorted({int(row["item_id"]) for name in files for row in files[name]})
    numbers = np.random.default_rng(0).normal(size=(len(items), 64)).astype(np.float32)
    keys = [str(item) for item in items[::2]]
    if vectors == "h5":
        with h5py.File(raw / "item_visual_emb_dim64.h5", "w") as file:
            file["key"], file["value"] = items[::2], numbers[::2]
    else:
        keys = [str(number) for number in range(len(np.load(raw / "visual64_select.npy")))]
    schema = prepare_kuaivideo_x1(raw, tmp_path / "out", split, **ENGINE)
    for rows in files.values():
        for row in rows:
            row["group_id"], row["item_emb"] = row["user_id"], row["item_id"]
            for name in ("pos_items", "neg_items"):
                row[name] = row[f"{name}_emb"] = row[name].split("^") if row[name] else []
    expected = {"train": files["train"], "validation": files["test"], "test": files["test"]}
    if split == "clean":
        cut = sorted(int(row["timestamp"]) for row in files["train"])[int(0.9 * len(files["train"]))]
        expected["train"] = [row for row in files["train"] if int(row["timestamp"]) < cut]
        expected["validation"] = [row for row in files["train"] if int(row["timestamp"]) >= cut]
    check_prepared(tmp_path / "out", expected, 10, {"item_emb": keys})
    check_like(schema, SCHEMAS / "kuaivideo.yaml")
    given = np.load(tmp_path / "out/pretrained/item_emb.npy")
    assert given.shape == (1 + len(keys), 64)
    if vectors == "h5":
        np.testing.assert_array_equal(given[1 + sorted(keys).index(keys[7])], numbers[14])


def test_mistakes(tmp_path: Path) -> None:
    generate_amazon_electronics_x1(tmp_path / "amazon", 200)
    with pytest.raises(
        UserError, match="not of TaobaoAd_x1: its header has column 1 named 'label', not 'clk'"
    ):
        prepare_taobao_ad_x1(tmp_path / "amazon", tmp_path / "out", **ENGINE)
    with pytest.raises(
        UserError, match=r"valid.csv is missing: give the directory with all files of Movielens"
    ):
        prepare_movielens(tmp_path / "amazon", tmp_path / "out", **ENGINE)
    generate_kuaivideo_x1(tmp_path / "kuaivideo", 200)
    (tmp_path / "kuaivideo/visual64_select.npy").unlink()
    with pytest.raises(UserError, match=r"has no item_visual_emb_dim64\.h5, nor visual64_select\.npy"):
        prepare_kuaivideo_x1(tmp_path / "kuaivideo", tmp_path / "out", **ENGINE)
    assert not (tmp_path / "out").exists()
