"""Hosts on one machine: network namespaces joined by a bridge, each with an address and a bandwidth of its own.

The bridge has a namespace too, so that nothing is made in the machine's own network, and deleting the namespaces
removes everything.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cetnet.trainer.errors import UserError

INTERFACE = "eth0"
_PREFIX = "cetnet-"
_NETWORK = "10.77.0"


class HostError(ChildProcessError):
    """A command failed: one of those that make the hosts, or one that ran on them."""


@dataclass(frozen=True)
class Network:
    """Hosts and the switch between them.

    Attributes:
        switch: namespace of the bridge; host i is plugged into its `port<i>`.
        hosts: namespace of each host.
    """

    switch: str
    hosts: tuple[str, ...]

    @staticmethod
    def address(host: int) -> str:
        """IPv4 address of a host, within the namespaces."""
        return f"{_NETWORK}.{host + 1}"


def unavailable() -> str | None:
    """Why hosts can't be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"`{tool}` is missing; install iproute2"
    probe = f"{_PREFIX}{os.getpid()}-probe"
    if problem := _try("ip", "netns", "add", probe):
        return f"this machine makes no network namespaces ({problem})"
    problem = _try("ip", "-n", probe, "link", "add", "name", "bridge", "type", "bridge")
    _try("ip", "netns", "delete", probe)
    return f"this kernel makes no bridges ({problem})" if problem else None


@contextmanager
def network(num_hosts: int) -> Iterator[Network]:
    """Make the hosts; remove them at the end, however it comes, with every process that runs on them.

    Raises:
        UserError: not root, no iproute2, or a kernel without namespaces.
    """
    if problem := unavailable():
        raise UserError(f"cannot make hosts: {problem}")
    remove_leftovers()
    name = f"{_PREFIX}{os.getpid()}"
    made = Network(f"{name}-switch", tuple(f"{name}-host{i}" for i in range(num_hosts)))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _build(made)
        yield made
    finally:
        _remove((made.switch, *made.hosts))
        signal.signal(signal.SIGTERM, before)


def set_link(network: Network, mbit: float | None, delay_ms: float = 0.0) -> None:
    """Give every host this bandwidth, to and from the switch (None: no limit), and this delay each way.

    A delay needs `can_delay`.
    """
    links = [(host, INTERFACE) for host in network.hosts]
    links += [(network.switch, f"port{i}") for i in range(len(network.hosts))]
    for namespace, interface in links:
        _try("tc", "-n", namespace, "qdisc", "delete", "dev", interface, "root")
        parent = ["root"]
        if mbit is not None:
            # The burst goes out at full speed; smaller than one segment of TCP offload it would be cut up.
            burst = max(128 * 1024, int(mbit * 1e6 / 8 * 0.004))
            _call("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "handle", "1:",
                  "tbf", "rate", f"{mbit:g}mbit", "burst", str(burst), "latency", "50ms")  # fmt: skip
            parent = ["parent", "1:"]
        if delay_ms and namespace != network.switch:
            _call("tc", "-n", namespace, "qdisc", "add", "dev", interface, *parent,
                  "netem", "delay", f"{delay_ms:g}ms")  # fmt: skip


def can_delay(network: Network) -> bool:
    """Whether the kernel has `netem`."""
    host = network.hosts[0]
    refused = _try("tc", "-n", host, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    _try("tc", "-n", host, "qdisc", "delete", "dev", "lo", "root")
    return refused is None


def torchrun(
    network: Network,
    module: str,
    arguments: Sequence[str],
    log: Path,
    timeout: float,
) -> None:
    """Run `python -m MODULE ARGUMENTS` under torchrun, one process on each host; output goes to `log`.

    Raises:
        HostError: a host's process failed or the time is up; names the log.
    """
    env = os.environ | {
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONSAFEPATH": "1",  # nothing is imported from the folder one stands in
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen] = []
    with log.open("wb") as file:
        try:
            for rank, host in enumerate(network.hosts):
                command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run",
                           "--nnodes", str(len(network.hosts)), "--node-rank", str(rank), "--nproc-per-node", "1",
                           "--master-addr", Network.address(0), "--master-port", "29500",
                           "-m", module, *arguments]  # fmt: skip
                processes.append(
                    subprocess.Popen(
                        command, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
                    )
                )
            _wait(processes, log, timeout)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
            for host in network.hosts:
                _kill_processes(host)


def _wait(processes: Sequence[subprocess.Popen], log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            break
        if time.monotonic() > deadline:
            raise HostError(f"not done after {timeout:.0f} s; see {log}")
        time.sleep(0.1)
    if any(process.poll() != 0 for process in processes):
        raise HostError(f"a host's process failed; see {log}")


def remove_leftovers() -> None:
    """Remove what earlier runs left that were killed before they could."""
    names = [line.split()[0] for line in _call("ip", "netns", "list").splitlines() if line.strip()]
    _remove([name for name in names if _is_leftover(name)])


def _is_leftover(name: str) -> bool:
    """Whether a namespace was made by a run whose process is gone, or had the number that is ours now."""
    pid = name.removeprefix(_PREFIX).partition("-")[0]
    gone = pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists()
    return name.startswith(_PREFIX) and pid.isdigit() and gone


def _build(network: Network) -> None:
    _call("ip", "netns", "add", network.switch)
    _call("ip", "-n", network.switch, "link", "add", "name", "bridge", "type", "bridge")
    _call("ip", "-n", network.switch, "link", "set", "bridge", "up")
    for index, host in enumerate(network.hosts):
        port = f"port{index}"
        _call("ip", "netns", "add", host)
        _call("ip", "link", "add", "name", INTERFACE, "netns", host,
              "type", "veth", "peer", "name", port, "netns", network.switch)  # fmt: skip
        _call("ip", "-n", network.switch, "link", "set", port, "master", "bridge", "up")
        _call("ip", "-n", host, "address", "add", f"{Network.address(index)}/24", "dev", INTERFACE)
        for interface in ("lo", INTERFACE):
            _call("ip", "-n", host, "link", "set", interface, "up")


def _remove(namespaces: Sequence[str]) -> None:
    for namespace in namespaces:
        _kill_processes(namespace)
        _try("ip", "netns", "delete", namespace)


def _kill_processes(namespace: str) -> None:
    """End every process of a namespace; a killed launcher leaves its workers behind."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in listed.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _try(*command: str) -> str | None:
    """Run a command that may fail; returns what it says then."""
    try:
        _call(*command)
    except HostError as error:
        return str(error)
    return None
