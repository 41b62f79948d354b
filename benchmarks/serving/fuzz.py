"""Requests to a model server that are right, wrong in one place, or noise; and whether each answer is as it must."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cetnet.benchmarks.serving.fuzzer import TOLERANCE, Answer, Client, Fuzzer, Server
from cetnet.benchmarks.serving.mutations import sent
from cetnet.trainer.export.scorer import Scorer


@dataclass
class Findings:
    """What became of the requests.

    Attributes:
        outcomes: numbers of them, by what the server said.
        wrong: descriptions of what should not be: another answer, none in time, a fault told by the server.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def fuzz(export: Path, server: Server, requests: int, seed: int = 0, threads: int = 4) -> Findings:
    """Send so many requests over so many connections, and judge every answer."""
    findings, scorer = Findings(), Scorer(export, None)

    def share(number: int) -> None:
        fuzzer, client = Fuzzer(export, scorer, seed * threads + number), Client(server)
        try:
            for _ in range(requests // threads):
                what, answer, rows = sent(fuzzer, client)
                findings.outcomes[answer.said] += 1
                if what.startswith("gRPC bytes") and answer.said in ("gRPC INTERNAL", "gRPC UNKNOWN"):
                    continue  # what gRPC itself says of bytes that are no message
                if problem := judged(fuzzer, answer, rows):
                    findings.wrong.append(f"{what}: {problem}")
        finally:
            client.close()

    with ThreadPoolExecutor(threads) as pool:
        for each in [pool.submit(share, number) for number in range(threads)]:
            each.result()
    return findings


def judged(fuzzer: Fuzzer, answer: Answer, rows: Sequence[dict[str, Any]] | None) -> str | None:
    """What is wrong with an answer; `rows` are those that it must be of, None if only an error is right."""
    if answer.said in ("hung", "HTTP 500", "gRPC INTERNAL", "gRPC UNKNOWN"):
        return answer.said
    if answer.scores is None:
        return None if rows is None else f"{answer.said} for a request that is right"
    if rows is None:
        return f"{answer.said} for a request that is wrong"
    right = fuzzer.right(rows)
    if answer.scores.shape != right.shape:
        return f"{answer.scores.shape} probabilities instead of {right.shape}"
    difference = float(np.abs(answer.scores - right).max())
    return None if difference <= TOLERANCE else f"differs from what is right by {difference:.2g}"
