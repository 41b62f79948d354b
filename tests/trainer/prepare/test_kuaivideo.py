import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cetnet.trainer.cli import app
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.generate.kuaivideo import generate_kuaivideo
from cetnet.trainer.prepare.sources import kuaivideo
from cetnet.trainer.prepare.sources.kuaivideo import prepare_kuaivideo
from tests.paths import SCHEMAS
from tests.trainer.prepare.slow import check_like

Row = dict[str, Any]


def load(path: Path) -> list[Any]:
    """The six pickles; safe on what we wrote."""
    with path.open("rb") as file:
        contents = [pickle.load(file) for _ in range(6)]
        assert not file.read()
    return contents


def slow_rows(raw: Path, split: str, keep: str) -> dict[str, list[Row]]:
    train, test, pos_seq, neg_seq, _, _ = load(raw / "dataset.pkl")
    rows: dict[str, list[Row]] = {}
    for name, samples in (("train", train), ("test", test)):
        rows[name] = []
        for (user, item, click, _, _, time), pos_len, neg_len in sorted(samples, key=lambda s: s[0][5]):
            cut = (lambda items: items[:100]) if keep == "oldest" else (lambda items: items[-100:])
            pos, neg = cut(pos_seq[user][:pos_len]), cut(neg_seq[user][:neg_len])
            row = {"is_click": click, "group_id": user, "user_id": user, "item_id": item, "item_emb": item}
            row |= {"pos_items": pos, "pos_items_emb": pos, "neg_items": neg, "neg_items_emb": neg}
            rows[name].append(row | {"time": time})
    if split == "bars":
        return rows | {"validation": rows["test"]}
    cut_time = rows["train"][int(0.9 * len(rows["train"]))]["time"]
    rows["validation"] = [row for row in rows["train"] if row["time"] >= cut_time]
    rows["train"] = [row for row in rows["train"] if row["time"] < cut_time]
    return rows


def vocabulary(values: list[int], min_count: int) -> dict[int, int]:
    kept = sorted(str(value) for value, count in Counter(values).items() if count >= min_count)
    return {int(value): number for number, value in enumerate(kept, start=1)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kuaivideo") / "raw"
    generate_kuaivideo(out, 3000, seed=4)
    return out


@pytest.mark.parametrize(("split", "keep"), [("clean", "recent"), ("bars", "oldest")])
def test_rows_against_a_slow_reader(
    raw: Path, split: Any, keep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kuaivideo, "CHUNK_ROWS", 500)
    expected = slow_rows(raw, split, keep)
    train = expected["train"]
    assert len({row["time"] for row in train}) < len(train)
    assert max(len(row["neg_items"]) for row in train) == 100
    out = tmp_path / "out"
    prepared = prepare_kuaivideo(raw, out, split, keep)
    seen = [item for row in train for item in (row["item_id"], *row["pos_items"], *row["neg_items"])]
    vectors = np.load(raw / "visual64_select.npy")
    ids = {
        "user_id": vocabulary([row["user_id"] for row in train], 10),
        "item_id": vocabulary(seen, 10),
        "item_emb": vocabulary(list(range(len(vectors))), 1),
    }
    assert prepared.tables == {table: 1 + len(values) for table, values in ids.items()}
    assert prepared.pretrained == {"item_emb": 64}
    for name in SPLITS:
        written = pq.read_table(out / name).to_pylist()
        wanted = []
        for row in expected[name]:
            of_row: Row = {"is_click": row["is_click"], "group_id": row["group_id"]}
            of_row |= {table: values.get(row[table], 0) for table, values in ids.items()}
            for column, table in (("items", "item_id"), ("items_emb", "item_emb")):
                for kind in ("pos", "neg"):
                    items = row[f"{kind}_{column}"]
                    of_row[f"{kind}_{column}"] = [ids[table].get(item, 0) for item in items]
            wanted.append(of_row)
        assert written == wanted
    given = np.load(out / "pretrained/item_emb.npy")
    assert given.dtype == np.float32
    np.testing.assert_array_equal(given[0], np.zeros(64))
    for item, number in ids["item_emb"].items():
        np.testing.assert_array_equal(given[number], vectors[item])
    check_like(prepared, SCHEMAS / "kuaivideo.yaml")
    assert list(tmp_path.iterdir()) == [out]


class Evil:
    """Pickled, it makes a file when it is loaded by `pickle`."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("RAN",)


class EvilArray:
    def __init__(self, dtype: str, state: Any) -> None:
        self.dtype, self.state = dtype, state

    def __reduce__(self) -> Any:
        return np.array([]).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


def of_samples(samples: Any) -> list[Any]:
    return [samples, samples, [[1], [2]], [[], []], [], []]


GOOD = [((0, 1, 1, 0, 0, 5), 1, 0), ((1, 2, 0, 0, 0, 6), 1, 0)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickles_are_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "raw"
    raw.mkdir()
    np.save(raw / "visual64_select.npy", np.ones((3, 64), np.float32))
    for content in ([Evil()], [((Evil(), 1, 1, 0, 0, 5), 1, 0)]):
        (raw / "dataset.pkl").write_bytes(b"".join(pickle.dumps(c, protocol) for c in of_samples(content)))
        with pytest.raises(
            UserError, match=r"dataset\.pkl is not ALPINE's.*posix\.mkdir.*nothing of it was run"
        ):
            prepare_kuaivideo(raw, tmp_path / "out")
        assert list(tmp_path.iterdir()) == [raw]


@pytest.mark.parametrize(
    "line",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n(cbuiltins\nlist\nS'append'\ntR.",
        b"cos\nsystem\n(S'mkdir RAN'\ntR.",
        b"csubprocess\nPopen\n(S'mkdir'\nS'RAN'\nltR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\nI0\nI1\ntRcos\nsystem\ntR.",
        b"cnumpy\ndtype\n(S'O'\nI0\nI1\ntR.",  # its numbers would be taken for addresses
        b"cnumpy\nload\n(S'x.npy'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.",
        b"(S'mkdir RAN'\nios\nsystem\n.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09mkdir RAN\x85R.",
        b"garbage",
        b"",
        pickle.dumps({"a": 1}),
        pickle.dumps([1, 2, 3]),
        pickle.dumps([((0, 1, 2, 0, 0, 5), 1, 0)]),
        pickle.dumps([((0, 1, 1, 0, 0, 5), -1, 0)]),
        pickle.dumps([((0, 1, 1, 0, 0, float("nan")), 1, 0)]),
        pickle.dumps([((0, 1.5, 1, 0, 0, 5), 1, 0)]),
        pickle.dumps(GOOD) + pickle.dumps(GOOD) + pickle.dumps(7),
        pickle.dumps(GOOD) + pickle.dumps(GOOD) + pickle.dumps([["a"], [1]]),
        pickle.dumps(GOOD) + pickle.dumps(GOOD) + pickle.dumps([[1]]) + pickle.dumps([[2]]),
        pickle.dumps(GOOD),
    ],
)
def test_bad_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "raw"
    raw.mkdir()
    np.save(raw / "visual64_select.npy", np.ones((3, 64), np.float32))
    (raw / "dataset.pkl").write_bytes(line)
    with pytest.raises(UserError, match=r"dataset\.pkl") as caught:
        prepare_kuaivideo(raw, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [raw]


FORMS: list[Callable[[list[list[int]]], Any]] = [
    lambda lists: dict(enumerate(lists)),
    lambda lists: [np.array(items, np.int32) for items in lists],
    lambda lists: tuple(np.array(items, ">i8") for items in lists),
    lambda lists: [[np.int64(item) for item in items] for items in lists],
    lambda lists: {np.int64(user): items for user, items in enumerate(lists)},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [0, 2, 3, 5])
def test_other_forms_of_the_same(tmp_path: Path, form: Any, protocol: int) -> None:
    """Numbers and arrays of numpy, dictionaries: all are data."""
    train = [((0, 1, 1, 0, 0, 5), 2, 0), ((1, 2, 0, 0, 0, 3), 0, 3), ((0, 2, 0, 0, 0, 7), 3, 1)]
    samples = [tuple(np.array(shown)) for shown, *_ in train]
    contents = [
        [(shown, pos, np.int32(neg)) for shown, (_, pos, neg) in zip(samples, train, strict=True)],
        train[:1],
        form([[4, 5, 6], [7]]),
        form([[8], [9, 4, 5]]),
    ]
    path = tmp_path / "dataset.pkl"
    path.write_bytes(b"".join(pickle.dumps(content, protocol) for content in contents))
    (tmp_path / "arrays").mkdir()
    kuaivideo.read_dataset(tmp_path / "arrays", path)
    columns = kuaivideo.SAMPLE
    rows = [dict(zip(columns, row, strict=True)) for row in np.load(tmp_path / "arrays/train.npy").tolist()]
    assert [(row["user"], row["item"], row["pos_len"], row["neg_len"]) for row in rows] == [
        (1, 2, 0, 3),
        (0, 1, 2, 0),
        (0, 2, 3, 1),
    ]
    users = np.array([row["user"] for row in rows])
    items, lengths = kuaivideo._prefixes(
        tmp_path / "arrays", "neg", users, np.array([row["neg_len"] for row in rows]), "oldest"
    )
    assert (items.tolist(), lengths.tolist()) == ([9, 4, 5, 8], [3, 0, 1])


def test_command_and_missing_files(tmp_path: Path) -> None:
    generate_kuaivideo(tmp_path / "raw", 400)
    generate_kuaivideo(tmp_path / "again", 400)
    for name in ("dataset.pkl", "visual64_select.npy", "user_like.npy"):
        assert (tmp_path / "raw" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    arguments = ["prepare", "kuaivideo", "--raw", str(tmp_path / "raw"), "--workers", "1", "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    assert result.exit_code == 0, result.exception
    (tmp_path / "raw/visual64_select.npy").unlink()
    with pytest.raises(UserError, match=r"visual64_select\.npy: No such file"):
        prepare_kuaivideo(tmp_path / "raw", tmp_path / "other")
    assert not list(tmp_path.glob("*other*"))
