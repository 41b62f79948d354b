"""Tests of the CUDA path: one process, one GPU, the real trainer.

They are skipped where no GPU can be used. `CETNET_TEST_DEVICE=cpu` tries the tests themselves without one.
"""

import os

import pytest

from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.distributed import resolve_device


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """What is compared with the CPU."""
    device = os.environ.get("CETNET_TEST_DEVICE", "cuda")
    try:
        resolve_device(device)
    except UserError as error:
        pytest.skip(f"needs a GPU and fbgemm-gpu's CUDA build: {error}")
    return device


@pytest.fixture
def on_gpu(device: str) -> None:
    """Asked for by tests of what the CPU has no kernels for."""
    if device != "cuda":
        pytest.skip("the CPU has no kernels for this")
