"""Hosts of the network benchmark: made, joined, limited, and removed whatever happens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cetnet.benchmarks.network import hosts
from cetnet.benchmarks.network.__main__ import _rate
from cetnet.benchmarks.network.results import Result, write_results
from cetnet.trainer.errors import UserError

WHY_NOT = hosts.unavailable()
needs_hosts = pytest.mark.skipif(WHY_NOT is not None, reason=f"no hosts can be made here: {WHY_NOT}")


def namespaces(pid: int) -> set[str]:
    """Those that the process made."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0] for line in listed.splitlines() if line}
    return {name for name in names if name.startswith(f"cetnet-{pid}-")}


def on_host(host: str, *command: str) -> str:
    done = subprocess.run(["ip", "netns", "exec", host, *command], capture_output=True, text=True, check=True)
    return done.stdout


@needs_hosts
def test_hosts_reach_each_other_at_their_bandwidth() -> None:
    with hosts.network(3) as made:
        hosts.set_link(made, 200)
        serve = "import socket; s = socket.create_server(('', 5000)); print(flush=True); s.accept()[0].send(b'hi')"
        server = subprocess.Popen(
            ["ip", "netns", "exec", made.hosts[2], sys.executable, "-c", serve], stdout=subprocess.PIPE
        )
        assert server.stdout is not None
        server.stdout.readline()
        ask = f"import socket; print(socket.create_connection(('{made.address(2)}', 5000), 10).recv(2))"
        assert on_host(made.hosts[0], sys.executable, "-c", ask) == "b'hi'\n"
        server.wait(10)
        assert "rate 200Mbit" in on_host(made.hosts[1], "tc", "qdisc", "show", "dev", hosts.INTERFACE)
        hosts.set_link(made, None)
        assert "tbf" not in on_host(made.hosts[1], "tc", "qdisc", "show", "dev", hosts.INTERFACE)
    assert not namespaces(os.getpid())


@needs_hosts
def test_hosts_are_removed_with_their_processes_after_a_failure() -> None:
    started: list[subprocess.Popen] = []

    def fail() -> None:
        with hosts.network(2) as made:
            started.append(subprocess.Popen(["ip", "netns", "exec", made.hosts[0], "sleep", "1000"]))
            while not hosts._call("ip", "netns", "pids", made.hosts[0]):
                time.sleep(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert started[0].wait(10) == -signal.SIGKILL
    assert not namespaces(os.getpid())


@needs_hosts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_hosts_are_removed_when_the_benchmark_is_stopped(number: signal.Signals) -> None:
    wait = (
        "import time; from cetnet.benchmarks.network.hosts import network\n"
        "with network(2): print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", wait], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path.cwd()
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert len(namespaces(process.pid)) == 3
    process.send_signal(number)
    process.wait(20)
    assert not namespaces(process.pid)


@needs_hosts
def test_leftovers_of_a_killed_run_are_removed_with_their_processes() -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    left = f"cetnet-{killed.pid}-host0"
    subprocess.run(["ip", "netns", "add", left], check=True)
    orphan = subprocess.Popen(["ip", "netns", "exec", left, "sleep", "1000"])
    while not hosts._call("ip", "netns", "pids", left):
        time.sleep(0.01)
    hosts.remove_leftovers()
    assert orphan.wait(10) == -signal.SIGKILL
    assert not namespaces(killed.pid)


def test_only_what_a_dead_run_made_is_a_leftover() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    assert hosts._is_leftover(f"cetnet-{dead.pid}-switch")
    assert not hosts._is_leftover(f"cetnet-{os.getppid()}-switch")
    assert not hosts._is_leftover("cetnet-lab")
    assert not hosts._is_leftover(f"docker-{dead.pid}-switch")


def test_a_failed_host_ends_the_others(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", code]) for code in ("exit(3)", "import time; time.sleep(60)")
    ]
    try:
        with pytest.raises(hosts.HostError, match=r"failed; see .*the\.log"):
            hosts._wait(processes, tmp_path / "the.log", 30)
        with pytest.raises(hosts.HostError, match="not done after 0 s"):
            hosts._wait(processes[1:], tmp_path / "the.log", 0)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_bandwidths_are_numbers_or_unlimited() -> None:
    assert [_rate("100"), _rate("2500"), _rate("unlimited")] == [100.0, 2500.0, None]
    for wrong in ("fast", "0", "-1", "nan"):
        with pytest.raises(UserError, match="--bandwidth"):
            _rate(wrong)


def test_report_has_measured_over_estimated(tmp_path: Path) -> None:
    results = [
        Result(100, "table_wise", "fp32", "16 table_wise", 900.0, 800.0, 4.0, 1000.0),
        Result(None, "planned", "fp16", "9 row_wise, 7 table_wise", 90.0, 20.0, 2.0, 10.0),
    ]
    write_results(results, "2 hosts", "measured here", tmp_path)
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[2] == "| 100 Mbit/s | table_wise | fp32 | 900 | 800.0 | 4.00 | 200.0 | 1000.0 | 0.80 |"
    assert table[3].startswith(
        "| unlimited | planned (9 row_wise, 7 table_wise) | fp16 | 90 | 20.0 | 2.00 | 10.0 "
    )
    assert (tmp_path / "table.csv").read_text().count("\n") == 3
    assert (tmp_path / "plot.png").stat().st_size > 10_000
