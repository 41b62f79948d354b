"""Raw files cut into pieces, and those that can't be read."""

import csv
import gzip
import io
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.csv_frames import line_cuts
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from tests.trainer.prepare.test_tabular import write_schema

text = st.text(st.sampled_from('ab,"\n'), max_size=8)


@given(st.lists(st.tuples(text, text), min_size=1, max_size=30), st.integers(60, 200))
def test_cuts_are_between_records(records: list[tuple[str, str]], chunk_bytes: int) -> None:
    file = io.StringIO(newline="")
    starts = []
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for record in records:
        starts.append(file.tell())
        writer.writerow(record)
    path = Path(tempfile.gettempdir(), f"cuts-{os.getpid()}.csv")
    try:
        path.write_text(file.getvalue(), encoding="utf-8", newline="")
        cuts = line_cuts(path, chunk_bytes, '"')
    finally:
        path.unlink()
    assert set(cuts) <= set(starts[1:])
    bounds = [0, *cuts, len(file.getvalue())]
    assert all(0 < b - a < 2 * chunk_bytes for a, b in itertools.pairwise(bounds))


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    (tmp_path / "raw.csv").write_text('a,"b\n' * 101)
    with pytest.raises(UserError, match="quote is not closed"):
        line_cuts(tmp_path / "raw.csv", 3, '"')
    assert len(line_cuts(tmp_path / "raw.csv", 100, None)) == 5


@pytest.mark.parametrize(
    ("format", "name", "content"),
    [
        ("parquet", "a.parquet", b"PAR1 no"),
        ("csv", "a.csv", b""),
        ("csv", "a.csv.gz", b"no gzip"),
        ("csv", "a.csv.gz", gzip.compress(b"click,user\n1,2\n" * 100, mtime=0)[:40]),
        ("csv", "a.csv", b"click,user\n1,\xff\n"),
    ],
    ids=["no parquet", "empty", "no gzip", "cut gzip", "no utf-8"],
)
def test_unreadable_files(tmp_path: Path, format: Any, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    schema = write_schema(
        tmp_path / "raw.yaml", features=[{"name": "user", "kind": "categorical"}], tables={}, timestamp=None
    )
    with pytest.raises(UserError, match="is not readable as") as caught:
        prepare_tabular(format, tmp_path / name, tmp_path / "out", schema)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {name, "raw.yaml"}
