"""Rows without a group, such as those of users who are not logged in."""

import csv
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.card import Card
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.splits import parse_split
from cetnet.trainer.prepare.engine.tabular import prepare_table, prepare_tabular
from cetnet.trainer.prepare.engine.tasks import Resources, TaskSizes
from tests.trainer.prepare.conftest import SMALL
from tests.trainer.prepare.slow import loop_hash, mix
from tests.trainer.prepare.test_engine import tree
from tests.trainer.prepare.test_tabular import read

SCHEMA: dict[str, Any] = {
    "label": "click",
    "group": "user",
    "timestamp": "time",
    "tables": {"row": 600},
    "null_values": ["\\N"],
    "features": [{"name": "user", "kind": "categorical"}, {"name": "row", "kind": "categorical"}],
}
ROWS = 600
NAMES = {
    "integers": lambda i: str(i * i % 91 - 5),
    "texts": lambda i: f"user {i * i % 91}",
    "no": lambda _: None,
}
MISSING = [None, "", "\\N"]


def users(kind: str) -> list[str | None]:
    """The first rows, all of some chunks, and many others have none."""
    return [MISSING[i % 3] if i < 3 or 200 <= i < 400 or i % 5 == 0 else NAMES[kind](i) for i in range(ROWS)]


def write(folder: Path, format: str, values: list[str | None]) -> None:
    """Two files."""
    folder.mkdir()
    for number, (first, end) in enumerate(((0, 250), (250, ROWS))):
        rows = [
            {"click": i % 2, "user": values[i], "time": i * 7919 % ROWS, "row": i} for i in range(first, end)
        ]
        path = folder / f"{number}.{format}"
        if format == "parquet":
            frame = pl.DataFrame(rows, schema_overrides={"user": pl.String})
            if not any(map(present, values)) and number:
                frame = frame.with_columns(pl.lit(None).alias("user"))  # of the type null
            frame.write_parquet(path, row_group_size=40)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)


def present(user: str | None) -> bool:
    return user not in MISSING


def groups_of(values: list[str | None]) -> list[int | None]:
    """What the prepared column holds."""
    known = [user for user in values if user is not None and present(user)]
    if all(user.lstrip("-").isdigit() for user in known):
        numbers = {user: int(user) for user in known}
    else:
        numbers = {user: number for number, user in enumerate(sorted(set(known)), start=1)}
    return [numbers[user] if user is not None and present(user) else None for user in values]


def random_split(values: list[str | None], groups: list[int | None], texts: bool) -> list[int]:
    """Train, validation or test (0, 1, 2) of each row, by 0.6, 0.2, 0.2 and the seed 1."""
    keys = [
        row if group is None else loop_hash(str(user)) if texts else group % 2**64
        for row, (user, group) in enumerate(zip(values, groups, strict=True))
    ]
    drawn = [(mix(key ^ mix(1)) >> 11) * 2.0**-53 for key in keys]
    return [0 if share < 0.6 else 1 if share < 0.8 else 2 for share in drawn]


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize("kind", list(NAMES))
@pytest.mark.parametrize("split", ["random", "time"])
def test_rows_without_a_group_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any, kind: str, split: str
) -> None:
    values = users(kind)
    write(tmp_path / "raw", format, values)
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")

    def prepare(name: str, sizes: TaskSizes) -> dict[str, bytes]:
        monkeypatch.setattr(Resources, "sizes", lambda _: sizes)
        prepare_tabular(
            format,
            tmp_path / "raw",
            tmp_path / name,
            tmp_path / "raw.yaml",
            f"{split}:0.6,0.2,0.2",
            workers=1,
            command="c",
        )
        return tree(tmp_path / name)

    assert prepare("small", SMALL) == prepare("whole", TaskSizes(10**6, 10**9))
    groups = groups_of(values)
    if split == "random":
        parts = random_split(values, groups, kind == "texts")
        order = list(range(ROWS))
    else:
        order = sorted(range(ROWS), key=lambda i: i * 7919 % ROWS)
        parts = [0 if i * 7919 % ROWS < 360 else 1 if i * 7919 % ROWS < 480 else 2 for i in range(ROWS)]
    expected = [[(i, groups[i]) for i in order if parts[i] == part] for part in range(3)]
    found = read(tmp_path / "small")
    assert [[(row["row"], row["user_group"]) for row in of_split] for of_split in found.values()] == expected
    assert all(
        (row["user"] == 0) >= (row["user_group"] is None) for of_split in found.values() for row in of_split
    )
    assert pq.read_schema(tmp_path / "small/train/part-00000.parquet").field("user_group").type == "int64"
    notes = json.loads((tmp_path / "small/card.json").read_text(encoding="utf-8"))["notes"]
    each = ", each split by its row number" if split == "random" else ""
    assert notes == [
        f"`user_group`: {groups.count(None)} rows have no group (null){each}; gAUC leaves them out."
    ]


def test_workers_change_nothing(tmp_path: Path, small_sizes: None) -> None:  # noqa: ARG001
    write(tmp_path / "raw", "csv", users("texts"))
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        prepare_tabular(
            "csv", tmp_path / "raw", out, tmp_path / "raw.yaml", workers=workers, command="c", seed=3
        )
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")


@pytest.mark.usefixtures("small_sizes")
def test_other_datasets_need_a_group_in_every_row(tmp_path: Path) -> None:
    """`prepare_table` alone, as published datasets are prepared."""
    values = [NAMES["texts"](i) if i < 450 else "" for i in range(ROWS)]
    write(tmp_path / "raw", "csv", values)
    spec = RawSchema.model_validate(SCHEMA)
    with pytest.raises(UserError, match=r"1\.csv: column 'user', row 201: expected a value, found nothing"):
        prepare_table(
            spec,
            {"all": [tmp_path / "raw/0.csv", tmp_path / "raw/1.csv"]},
            "csv",
            tmp_path / "out",
            Card(title="t", source="s", command="c"),
            split=parse_split("random:0.6,0.2,0.2", spec, 1),
            workers=1,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
