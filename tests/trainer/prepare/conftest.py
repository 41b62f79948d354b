from pathlib import Path

import pytest

from tests.paths import SHARED_DATA


@pytest.fixture(scope="session")
def real_data() -> Path:
    directory = SHARED_DATA
    if not directory.is_dir():
        pytest.skip("the real data (../shared/data) is not here: it may not be redistributed")
    return directory
