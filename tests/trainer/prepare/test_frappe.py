import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.layout import SPLITS
from cetnet.trainer.prepare.sources.frappe import FIELDS, prepare_frappe

LINE = "1 " + " ".join(f"{10 * i}:1" for i in range(10))


def slow_read(path: Path) -> list[list[int]]:
    with gzip.open(path, "rt") as file:
        return [[int(token.split(":")[0]) for token in line.split()] for line in file]


def test_real_files_against_a_slow_reader(real_data: Path, tmp_path: Path) -> None:
    raw, out = real_data / "frappe", tmp_path / "out"
    schema = prepare_frappe(raw, out)
    assert sum(schema.tables.values()) == 5389  # FuxiCTR v1's total
    lines = {split: slow_read(raw / f"frappe.{split}.libfm.gz") for split in SPLITS}
    assert [len(lines[split]) for split in SPLITS] == [202_027, 57_722, 28_860]
    known = [sorted({line[1 + i] for line in lines["train"]}) for i in range(10)]
    position = [{value: 1 + i for i, value in enumerate(values)} for values in known]
    for split in SPLITS:
        table = pq.read_table(out / split)
        assert table["label"].to_pylist() == [float(line[0] == 1) for line in lines[split]]
        assert table["user_id"].to_pylist() == [line[1] for line in lines[split]]
        for i, name in enumerate(FIELDS):
            expected = [position[i].get(line[1 + i], 0) for line in lines[split]]
            assert table[name].to_pylist() == expected, name
    for i, name in enumerate(FIELDS):
        counts = Counter(line[1 + i] for line in lines["train"])
        assert pq.read_table(out / f"vocabularies/{name}.parquet").to_pylist() == [
            {"value": str(value), "id": id, "count": counts[value]} for value, id in position[i].items()
        ]
    assert read_schema(out / "schema.yaml") == schema
    assert json.loads((out / "card.json").read_text())["splits"]["test"]["rows"] == 28_860
    card = (out / "README.md").read_text()
    assert card.count("| equal |") == len(SPLITS) + len(FIELDS)
    assert "ours" not in card.split("| count | ours |")[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE + " 99:1", "fields a line|not in libfm"),
        (LINE.replace("30:1", "x:1"), "line 1: field 'weekday'"),
        (LINE.replace("1 0:1", "2 0:1"), "line 1: field 'label'"),
    ],
)
def test_malformed(tmp_path: Path, line: str, message: str) -> None:
    for split in SPLITS:
        (tmp_path / f"frappe.{split}.libfm.gz").write_bytes(gzip.compress(f"{line}\n".encode()))
    with pytest.raises(UserError, match=message):
        prepare_frappe(tmp_path, tmp_path / "out")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"frappe\.train\.libfm\.gz is missing"):
        prepare_frappe(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
