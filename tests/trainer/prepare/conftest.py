from pathlib import Path

import pytest

from cetnet.trainer.prepare.engine.tasks import Resources, TaskSizes
from cetnet.trainer.prepare.engine.typed import ENTRY_BYTES
from tests.paths import SHARED_DATA

SMALL = TaskSizes(chunk_bytes=2_000, bucket_bytes=ENTRY_BYTES * 40)


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks and many ranges, of the smallest files."""
    monkeypatch.setattr(Resources, "sizes", lambda _: SMALL)


@pytest.fixture(scope="session")
def real_data() -> Path:
    directory = SHARED_DATA
    if not directory.is_dir():
        pytest.skip("the real data (../shared/data) is not here: it may not be redistributed")
    return directory
