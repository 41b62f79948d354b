from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    directory = Path(__file__).parents[2] / "../shared/data"
    if not directory.is_dir():
        pytest.skip("the real data (../shared/data) is not here: it may not be redistributed")
    return directory
