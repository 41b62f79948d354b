"""Raw files cut into pieces, and those that can't be read."""

import csv
import io
import itertools
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.csv_frames import line_cuts
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from tests.trainer.prepare.test_csv_frames import spec_of
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
        cuts = line_cuts(path, chunk_bytes, spec_of())
    finally:
        path.unlink()
    assert set(cuts) <= set(starts[1:])
    bounds = [0, *cuts, len(file.getvalue())]
    assert all(0 < b - a < 2 * chunk_bytes for a, b in itertools.pairwise(bounds))


def test_unreadable_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    schema = write_schema(
        tmp_path / "raw.yaml", features=[{"name": "user", "kind": "categorical"}], tables={}, timestamp=None
    )
    with pytest.raises(UserError, match="is not readable as parquet") as caught:
        prepare_tabular("parquet", tmp_path / "a.parquet", tmp_path / "out", schema)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"a.parquet", "raw.yaml"}
