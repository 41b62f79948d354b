"""The generators of raw formats, read back with the csv module."""

import csv
import gzip
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.generate import avazu, criteo, draw, movielens, sequences
from cetnet.trainer.processes.launcher import CETNET

CRITEO_COLUMNS = [f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)]
AVAZU_COLUMNS = [
    "C1",
    "banner_pos",
    "site_id",
    "site_domain",
    "site_category",
    "app_id",
    "app_domain",
    "app_category",
    "device_id",
    "device_ip",
    "device_model",
    "device_type",
    "device_conn_type",
    "C14",
    "C15",
    "C16",
    "C17",
    "C18",
    "C19",
    "C20",
    "C21",
]
SPLIT = ["train.csv", "valid.csv", "test.csv"]
# of each format: the generator, the files, the header, and the column of the label
FORMATS: dict[str, tuple[Callable[..., None], list[str], list[str] | None, int]] = {
    "criteo": (criteo.generate_criteo, ["train.txt"], None, 0),
    "criteo_1tb": (criteo.generate_criteo_1tb, [f"day_{day}.gz" for day in range(24)], None, 0),
    "criteo_x1": (criteo.generate_criteo_x1, SPLIT, ["label", *CRITEO_COLUMNS], 0),
    "criteo_x4": (criteo.generate_criteo_x4, SPLIT, ["Label", *CRITEO_COLUMNS], 0),
    "avazu": (avazu.generate_avazu, ["train.csv"], ["id", "click", "hour", *AVAZU_COLUMNS], 1),
    "avazu_x1": (avazu.generate_avazu_x1, SPLIT, ["label", *(f"feat_{i}" for i in range(1, 23))], 0),
    "avazu_x4": (avazu.generate_avazu_x4, SPLIT, ["id", "click", "hour", *AVAZU_COLUMNS], 1),
    "movielens_x1": (movielens.generate_movielens_x1, SPLIT, ["label", "user_id", "item_id", "tag_id"], 0),
    "amazon_electronics_x1": (
        sequences.generate_amazon_electronics_x1,
        ["train.csv", "test.csv"],
        ["label", "user_id", "item_id", "cate_id", "item_history", "cate_history"],
        0,
    ),
    "taobao_ad_x1": (
        sequences.generate_taobao_ad_x1,
        ["train.csv", "test.csv"],
        [
            "clk",
            "btag_his",
            "cate_his",
            "brand_his",
            "userid",
            "cms_segid",
            "cms_group_id",
            "final_gender_code",
            "age_level",
            "pvalue_level",
            "shopping_level",
            "occupation",
            "new_user_class_level",
            "adgroup_id",
            "cate_id",
            "campaign_id",
            "customer",
            "brand",
            "price",
            "pid",
            "btag",
        ],
        0,
    ),
    "kuaivideo_x1": (
        sequences.generate_kuaivideo_x1,
        ["train.csv", "test.csv", "visual64_select.npy"],
        ["timestamp", "user_id", "item_id", "is_click", "is_like", "is_follow", "pos_items", "neg_items"],
        3,
    ),
}


def rows_of(path: Path) -> Iterator[list[str]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    yield from csv.reader(text.decode().splitlines(), delimiter="," if path.suffix == ".csv" else "\t")


def all_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("name", FORMATS)
def test_format(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, files, header, label = FORMATS[name]
    generate(tmp_path / "raw", 3_000, seed=3)
    content = all_bytes(tmp_path / "raw")
    assert sorted(content) == sorted(files)
    rows = []
    for file in files:
        if file.endswith(".npy"):
            continue
        lines = list(rows_of(tmp_path / "raw" / file))
        if header is not None:
            assert lines.pop(0) == header
        assert lines
        rows += lines
    assert {len(row) for row in rows} == {len(header) if header else 40}
    assert {row[label] for row in rows} == {"0", "1"}
    assert abs(len(rows) - 3_000) <= (300 if name.startswith("amazon") else 0)  # whole users there

    monkeypatch.setattr(draw, "CHUNK_ROWS", 700)
    generate(tmp_path / "chunks", 3_000, seed=3)
    assert all_bytes(tmp_path / "chunks") == content
    generate(tmp_path / "other", 3_000, seed=4)
    assert all_bytes(tmp_path / "other") != content
    with pytest.raises(UserError, match="exists already"):
        generate(tmp_path / "other", 3_000)


def test_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few rows for 24 files"):
        criteo.generate_criteo_1tb(tmp_path / "raw", 20)
    assert list(tmp_path.iterdir()) == []


def test_criteo_has_the_oddities_of_the_original(tmp_path: Path) -> None:
    criteo.generate_criteo(tmp_path / "raw", 20_000)
    rows = list(rows_of(tmp_path / "raw/train.txt"))
    columns = list(zip(*rows, strict=True))
    assert 0.23 < columns[0].count("1") / len(rows) < 0.29
    assert {value for value in columns[2] if value.startswith("-")} == {"-1", "-2", "-3"}
    for column, share in ((1, 0.45), (12, 0.77), (13 + 22, 0.76), (13 + 1, 0.0)):
        assert abs(columns[column].count("") / len(rows) - share) < 0.02
    ids = [value for column in columns[14:] for value in column if value]
    assert all(len(value) == 8 and set(value) <= set("0123456789abcdef") for value in ids[:5_000])
    frequent = Counter(columns[13 + 3])
    assert len(frequent) > 5_000  # of some 10 million values
    assert frequent.most_common(2)[1][1] > 500


def test_avazu_has_the_oddities_of_the_original(tmp_path: Path) -> None:
    avazu.generate_avazu(tmp_path / "raw", 5_000)
    header, *rows = rows_of(tmp_path / "raw/train.csv")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert max(map(int, columns["id"])) > 2**63
    assert list(columns["hour"]) == sorted(columns["hour"])
    assert (columns["hour"][0], columns["hour"][-1]) == ("14102100", "14103023")
    assert 0.4 < columns["C20"].count("-1") / len(rows) < 0.7


def test_histories(tmp_path: Path) -> None:
    """A longer history of a user continues a shorter one; a label's category is one of the history, rather."""
    sequences.generate_amazon_electronics_x1(tmp_path / "amazon", 20_000)
    longest: dict[str, list[str]] = {}
    known = defaultdict(list)
    for file in ("test.csv", "train.csv"):
        _, *rows = rows_of(tmp_path / "amazon" / file)
        for label, user, _, category, items, categories in rows:
            history = items.split("^")
            kept = longest.setdefault(user, history)
            assert history == kept[: len(history)]  # the test row has the longest
            assert len(history) == len(categories.split("^"))
            known[label].append(category in categories.split("^"))
    assert sum(known["1"]) / len(known["1"]) > 2 * sum(known["0"]) / len(known["0"])
    _, *rows = rows_of(tmp_path / "amazon/test.csv")
    assert all(first[1] == second[1] for first, second in zip(rows[::2], rows[1::2], strict=True))
    sequences.generate_kuaivideo_x1(tmp_path / "kuai", 20_000)
    times = [
        int(row[0])
        for file in ("train.csv", "test.csv")
        for row in list(rows_of(tmp_path / "kuai" / file))[1:]
    ]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("criteo", [15, 18]),
        ("avazu", [5, 7]),
        ("movielens_x1", [1, 2]),
        ("taobao_ad_x1", [14]),
        ("kuaivideo_x1", [1]),
    ],
)
def test_labels_depend_on_the_ids(name: str, features: list[int], tmp_path: Path) -> None:
    """The click rate of the ids in one half of the rows tells something of the other half."""
    generate, files, _, label = FORMATS[name]
    generate(tmp_path / "raw", 30_000)
    rows = [row for row in rows_of(tmp_path / "raw" / files[0]) if row[label] in "01"]
    half = len(rows) // 2
    scores = [0.0] * (len(rows) - half)
    for feature in features:
        clicks, shown = Counter[str](), Counter[str]()
        for row in rows[:half]:
            clicks[row[feature]] += int(row[label])
            shown[row[feature]] += 1
        rate = sum(clicks.values()) / half
        for i, row in enumerate(rows[half:]):
            scores[i] += (clicks[row[feature]] + 20 * rate) / (shown[row[feature]] + 20)
    assert roc_auc_score([int(row[label]) for row in rows[half:]], scores) > 0.53


def test_command(tmp_path: Path) -> None:
    command = [
        *CETNET,
        "generate",
        "criteo",
        "--rows",
        "50",
        "--seed",
        "7",
    ]
    subprocess.run([*command, "--out", str(tmp_path / "raw")], check=True)
    assert len((tmp_path / "raw/train.txt").read_text().splitlines()) == 50
    again = subprocess.run([*command, "--out", str(tmp_path / "raw")], capture_output=True, text=True)
    assert again.returncode == 2
    assert "exists already" in again.stderr
