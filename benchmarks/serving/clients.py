"""Clients that ask a model server for scores: one after the other, as fast as it answers, or at a rate."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow.parquet as pq

from cetnet.benchmarks.serving.fuzzer import TOLERANCE
from cetnet.benchmarks.serving.server_process import Running

CANDIDATES = 100
_VERIFIED = 8  # of as many answers one is compared with what is right
_SECONDS = 30.0


@dataclass(frozen=True)
class Payload:
    """A request's body, and the first output's probabilities that are right for it."""

    body: bytes
    right: np.ndarray


@dataclass
class Load:
    """What became of requests.

    Attributes:
        latencies: seconds of those that were answered with scores, from when they should have been sent.
        outcomes: numbers of all, by HTTP status or error.
        seconds: from the first request to the last answer.
        versions: numbers of answers by version.
        wrong: answers that differ from what is right.
    """

    latencies: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    wrong: int = 0

    def quantile(self, share: float) -> float:
        """Of the latencies, in ms; NaN if there are none."""
        return float(np.quantile(self.latencies, share)) * 1000 if self.latencies else float("nan")

    @property
    def rate(self) -> float:
        """Answers with scores in a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    @property
    def failed(self) -> int:
        """Requests without scores."""
        return sum(self.outcomes.values()) - len(self.latencies)


def payloads(export: Path, count: int = 16, rows: int = CANDIDATES) -> list[Payload]:
    """Requests of rows drawn from the export's examples, every column as text."""
    request = json.loads((export / "request.json").read_text(encoding="utf-8"))
    separator = request["separator"]
    columns = list(dict.fromkeys(entry["column"] for entry in request["columns"]))
    with (export / "examples.parquet").open("rb") as file:
        examples = pq.read_table(file)
    texts = {name: [_cell(value, separator) for value in examples[name].to_pylist()] for name in columns}
    # An empty text in a list can't be told from an empty list, nor a separator in a value from one between two.
    usable = [
        row
        for row in range(examples.num_rows)
        if all(_as_list(examples[name][row].as_py(), separator) for name in columns)
    ]
    right = examples[f"expected/{request['outputs'][0]}"].to_numpy()
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        chosen = rng.choice(usable, rows)
        inputs = [
            {"name": name, "datatype": "BYTES", "shape": [rows], "data": [texts[name][row] for row in chosen]}
            for name in columns
        ]
        made.append(Payload(json.dumps({"inputs": inputs}).encode(), right[chosen]))
    return made


def _cell(value: object, separator: str) -> str | None:
    """What a CSV file would hold."""
    if isinstance(value, list):
        return separator.join("" if each is None else str(each) for each in value)
    return None if value is None else str(value)


def _as_list(value: object, separator: str) -> bool:
    if not isinstance(value, list):
        return True
    return value != [""] and value != [None] and not any(separator in str(each) for each in value)


class Caller:
    """Sends payloads, each from its own task, and writes down what became of them."""

    def __init__(self, session: aiohttp.ClientSession, server: Running, sent: Sequence[Payload]) -> None:
        self._session, self._payloads, self._number = session, sent, 0
        self._url = f"http://{server.host}:{server.port}/v2/models/{server.name}/infer"
        self.load = Load()

    async def ask(self, due: float) -> None:
        """Ask for a payload that should have been sent at `due`, of `time.perf_counter`."""
        self._number += 1
        payload, load = self._payloads[self._number % len(self._payloads)], self.load
        verified = self._number % _VERIFIED == 0
        try:
            async with self._session.post(self._url, data=payload.body) as response:
                content = await response.read()
                status = str(response.status)
        except TimeoutError:
            status = "no answer"
        except (aiohttp.ClientError, OSError) as error:
            status = type(error).__name__
        load.outcomes[status] += 1
        if status != "200":
            return
        load.latencies.append(time.perf_counter() - due)
        if verified:
            answer = json.loads(content)
            load.versions[answer["model_version"]] += 1
            given = np.array(answer["outputs"][0]["data"])
            load.wrong += not np.allclose(given, payload.right, rtol=0, atol=TOLERANCE)


def _session(connections: int = 0) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=60)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(_SECONDS))


async def one_after_the_other(server: Running, sent: Sequence[Payload], requests: int) -> Load:
    """Each request is sent when the one before is answered."""
    return await as_fast_as_it_answers(server, sent, 1, requests=requests)


async def as_fast_as_it_answers(
    server: Running, sent: Sequence[Payload], clients: int, seconds: float = 1e9, requests: int = 1 << 60
) -> Load:
    """So many clients, each of which sends when it has its answer."""
    async with _session() as session:
        caller, begin = Caller(session, server, sent), time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < begin + seconds and sum(caller.load.outcomes.values()) < requests:
                await caller.ask(time.perf_counter())

        await asyncio.gather(*[client() for _ in range(clients)])
        caller.load.seconds = time.perf_counter() - begin
        return caller.load


async def at_a_rate(
    server: Running,
    sent: Sequence[Payload],
    rate: float,
    seconds: float,
    stop: asyncio.Event | None = None,
    seed: int = 0,
) -> Load:
    """Requests at random moments, so many a second on average, whether others are answered or not; until `stop`."""
    rng = np.random.default_rng(seed)
    async with _session() as session:
        caller, begin = Caller(session, server, sent), time.perf_counter()
        tasks, due = [], begin
        while (due := due + rng.exponential(1 / rate)) < begin + seconds and not (stop and stop.is_set()):
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(caller.ask(due)))
        await asyncio.gather(*tasks)
        caller.load.seconds = time.perf_counter() - begin
        return caller.load
