"""What the environment says of this process among others: whole, consistent, or refused in one line."""

import os
import socket
from collections.abc import Callable

import pytest

from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.environment import VARIABLES, check_environment, check_threads, world_size

WHOLE = {
    "RANK": "1",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)


def test_what_torchrun_gives_is_taken() -> None:
    check_environment()
    assert world_size() == 2


def test_without_a_rank_the_others_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK")
    check_environment()
    assert not os.environ.keys() & set(VARIABLES)
    assert world_size() == 1


@pytest.mark.parametrize("name", [name for name in VARIABLES if name != "RANK"])
def test_one_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(UserError, match=f"RANK is set but {name} not; .* unset RANK"):
        check_environment()


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("RANK", "x", "RANK=x is not a number"),
        ("RANK", "-1", "RANK=-1 is not a number"),
        ("RANK", "²", "RANK=² is not a number"),
        ("RANK", "2", "RANK=2 is not below WORLD_SIZE=2"),
        ("WORLD_SIZE", "0", "RANK=1 is not below WORLD_SIZE=0"),
        ("LOCAL_RANK", "1", "LOCAL_RANK=1 is not below LOCAL_WORLD_SIZE=1"),
        ("LOCAL_WORLD_SIZE", "3", "LOCAL_WORLD_SIZE=3 is more than WORLD_SIZE=2"),
        ("MASTER_PORT", "http", "MASTER_PORT=http is not a number"),
        ("MASTER_PORT", "65536", "MASTER_PORT=65536 is no port"),
    ],
)
def test_a_wrong_value(name: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=named):
        check_environment()


def test_a_port_that_is_in_use(run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for name, value in {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        code, said = run("calibrate", "--device", "cpu")
    assert code == 2
    assert f"cetnet: MASTER_PORT={port} is in use on this host" in said


@pytest.mark.parametrize("value", ["0", "two", "-1", "1.5"])
def test_threads_at_which_polars_panics(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARS_MAX_THREADS", value)
    with pytest.raises(UserError, match=f"POLARS_MAX_THREADS='{value}' is not a number of 1 or more"):
        check_threads()
    for good in ("4", ""):
        monkeypatch.setenv("POLARS_MAX_THREADS", good)
        check_threads()
