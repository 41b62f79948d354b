"""How much memory a preparation may take, and what it does with less."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.tabular import prepare_tabular
from cetnet.trainer.prepare.engine.tasks import (
    BYTES_PER_CHUNK_BYTE,
    PROCESS_BYTES,
    Resources,
    Unfinished,
    local_resources,
    parse_memory,
)
from tests.trainer.prepare.test_tabular import records, write_csv, write_schema


def test_memory_too_small(tmp_path: Path) -> None:
    write_csv(tmp_path / "raw.csv", records(50))
    schema = write_schema(tmp_path / "raw.yaml")
    for memory, message in [
        ("100MB", "too little: give"),
        ("4", "a size such as 4GB"),
        ("1.2.3GB", "a size"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare_tabular("csv", tmp_path / "raw.csv", tmp_path / "out", schema, memory=memory)
    assert [parse_memory(text) for text in ("4GB", "1.5 GiB", "512mb")] == [4 * 10**9, 3 * 2**29, 512 * 10**6]
    assert [parse_memory(text) for text in ("4g", "600000kb", "2000000000")] == [
        4 * 10**9,
        6 * 10**8,
        2 * 10**9,
    ]


@given(st.integers(1, 64), st.integers(32 * 10**6, 10**11), st.integers(0, 10**11))
def test_less_memory_than_the_work_was_begun_with(workers: int, share: int, memory: int) -> None:
    sizes = Resources(workers, share).sizes()
    now = Resources(workers, max(32 * 10**6, memory // workers))
    limit = workers * (now.share + PROCESS_BYTES)
    needed = max(sizes.chunk_bytes * BYTES_PER_CHUNK_BYTE, 2 * sizes.bucket_bytes)
    try:
        fewer = now.fit(sizes)
    except Unfinished as error:
        assert needed + PROCESS_BYTES > limit
        match = re.search(r"give --memory (\d+MB), or remove it", str(error))
        assert match
        assert local_resources(parse_memory(match[1]), 1).fit(sizes).workers == 1
        return
    assert fewer.share >= needed
    assert 1 <= fewer.workers <= workers
    assert fewer.workers * (fewer.share + PROCESS_BYTES) <= limit
