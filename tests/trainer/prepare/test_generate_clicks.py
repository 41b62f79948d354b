"""Generated clicks of one's own kind: two days whose values are counted with Python's csv module."""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.generate import clicks

ROWS = 60_000


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clicks") / "raw"
    clicks.generate_clicks(out, ROWS, seed=3)
    return out


def day(folder: Path, number: int) -> list[dict[str, str]]:
    with (folder / f"day-{number}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_days_differ_by_a_fifth_of_users_and_items(generated: Path) -> None:
    first, second = day(generated, 1), day(generated, 2)
    assert len(first) == len(second) == ROWS // 2
    for column in ("user_id", "item_id"):
        before, after = ({row[column] for row in rows} for rows in (first, second))
        assert len(after - before) / len(after) == pytest.approx(0.2, abs=0.05)
        assert sum(row[column] not in before for row in second) / len(second) == pytest.approx(0.2, abs=0.05)
    phones = [sum(row["device"] == "phone" for row in rows) / len(rows) for rows in (first, second)]
    assert phones[1] > phones[0] + 0.05
    times = [int(row["ts"]) for row in first + second]
    assert times == sorted(times)
    assert times[ROWS // 2] - times[0] == 86_400
    japan = [row for row in second if row["country"] == "JP"]
    assert all(int(row["hour"]) == (int(row["ts"]) // 3600 + 9) % 24 for row in japan)


def test_every_oddity_of_real_logs_is_there(generated: Path) -> None:
    rows = day(generated, 1)
    assert any(not row["user_id"].isascii() for row in rows)
    assert {column for column in rows[0] if any(not row[column] for row in rows)} == {
        *("country", "tags", "history", "price", "age")
    }
    histories = [row["history"].split("|") if row["history"] else [] for row in rows]
    assert max(map(len, histories)) == clicks.HISTORY_LENGTH > 20  # more than the schema keeps
    tags = {tag for row in rows for tag in row["tags"].split("|")} - {""}
    assert tags == set(clicks.TAGS)
    spec = RawSchema.load(generated / "clicks.yaml")
    assert set(spec.raw_columns) == set(rows[0]) - {"click_probability"}


def test_a_history_goes_on(generated: Path) -> None:
    """A user's later history is the earlier one, less of its oldest events, and newer ones."""
    of_user: dict[str, list[list[str]]] = {}
    for row in day(generated, 1) + day(generated, 2):
        of_user.setdefault(row["user_id"], []).append(row["history"].split("|") if row["history"] else [])
    grown = 0
    for histories in of_user.values():
        for before, after in pairwise(histories):
            assert any(after[: len(before) - cut] == before[cut:] for cut in range(len(before) + 1))
            grown += after != before
    assert grown > 1000


def test_clicks_are_drawn_from_the_probability_beside_them(generated: Path) -> None:
    frame = pl.read_csv(generated / "day-2.csv")
    label, probability = frame["clicked"].to_numpy(), frame["click_probability"].to_numpy()
    decile = np.digitize(probability, np.quantile(probability, np.arange(0.1, 1, 0.1)))
    for part in range(10):
        inside = decile == part
        spread = np.sqrt(probability[inside].mean() / inside.sum())
        assert label[inside].mean() == pytest.approx(probability[inside].mean(), abs=4 * spread)
    ne = log_loss(label, probability) / log_loss(label, np.full(len(label), label.mean()))
    assert f"day-2.csv {ne:.5f}" in (generated / "clicks.yaml").read_text(encoding="utf-8")
    assert ne < 0.8


def test_formats_and_chunks_hold_the_same_rows(
    generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clicks, "CHUNK_ROWS", 7_000)
    clicks.generate_clicks(tmp_path / "parquet", ROWS, seed=3, format="parquet")
    assert sorted(path.name for path in (tmp_path / "parquet").iterdir()) == [
        *("clicks.yaml", "day-1.parquet", "day-2.parquet")
    ]
    for number in (1, 2):
        text = pl.read_csv(generated / f"day-{number}.csv")
        frame = pl.read_parquet(tmp_path / f"parquet/day-{number}.parquet", glob=False)
        lists = pl.col("tags", "history")
        assert frame.with_columns(lists.list.join("|").replace("", None)).equals(
            text.cast(dict(frame.schema) | {"tags": pl.String, "history": pl.String})
        )
    clicks.generate_clicks(tmp_path / "again", ROWS, seed=3)
    clicks.generate_clicks(tmp_path / "other", ROWS, seed=4)
    for name in ("clicks.yaml", "day-1.csv", "day-2.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (generated / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (generated / name).read_bytes()


def test_refusals_leave_nothing(generated: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        clicks.generate_clicks(generated, ROWS)
    with pytest.raises(UserError, match="--rows 150: at least 100 a day, 200"):
        clicks.generate_clicks(tmp_path / "raw", 150)
    assert list(tmp_path.iterdir()) == []
