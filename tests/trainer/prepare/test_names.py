"""Folders, columns and tables of any name."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.engine.tabular import prepare_tabular


def clicks(folder: Path, schema: str) -> Path:
    """60 rows, and a schema of them."""
    folder.mkdir()
    lines = ["click,user,item,user_group,ts", *(f"{i % 2},{i % 7},i{i % 5},{i % 3},{i}" for i in range(60))]
    (folder / "clicks.csv").write_text("\n".join(lines), encoding="utf-8")
    (folder / "schema.yaml").write_text(schema, encoding="utf-8")
    return folder


def prepared(folder: Path) -> dict[str, list[dict[str, object]]]:
    prepare_tabular("csv", folder / "clicks.csv", folder / "out", folder / "schema.yaml")
    return {split: pq.read_table(folder / "out" / split).to_pylist() for split in SPLITS}


SCHEMA = (
    "{label: click, features: [{name: user, kind: categorical}, {name: item, kind: categorical, table: %s}]}"
)


@pytest.mark.usefixtures("small_sizes")
def test_names_of_folders_and_tables_change_nothing(tmp_path: Path) -> None:
    plain = prepared(clicks(tmp_path / "plain", SCHEMA % "item"))
    clicks(tmp_path / "a1", SCHEMA % "item")  # what the next name would match as a pattern
    odd = clicks(tmp_path / "a[1] *?{b}%s é$x#", SCHEMA % "'[red] é: a|b 日本 $x$'")
    assert prepared(odd) == plain
    card = (odd / "out" / "README.md").read_text(encoding="utf-8")
    assert "`[red] é: a\\|b 日本 $x$`" in card


def test_columns_that_are_read_twice_do_not_meet_others(tmp_path: Path) -> None:
    """The group is a feature, and a feature has the name that the group's column would have."""
    features = [{"name": name, "kind": "categorical"} for name in ("user", "user_group", "ts")]
    schema = {"label": "click", "group": "user", "timestamp": "ts", "features": features}
    folder = clicks(tmp_path / "x", yaml.safe_dump(schema))
    rows = [row for split in prepared(folder).values() for row in split]
    assert sorted((row["ts_timestamp"], row["user_group_2"]) for row in rows) == [
        (i, i % 7) for i in range(60)
    ]
    assert len({row["user_group"] for row in rows}) == 3
    assert "group `user_group_2`" in (folder / "out" / "README.md").read_text(encoding="utf-8")


def test_a_folder_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = clicks(tmp_path / "x", SCHEMA % "item")
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(UserError, match=r"/caf\\udce9: a name that is not UTF-8; give another directory"):
        prepare_tabular("csv", folder / "clicks.csv", out, folder / "schema.yaml")
