"""Batches across requests, of a scorer in plain numpy."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from cetnet.trainer.serve.batches import Batches, Busy, Failed
from cetnet.trainer.serve.metrics import Metrics
from cetnet.trainer.serve.requests import Output, Request
from cetnet.trainer.serve.tensors import BadRequest
from cetnet.trainer.serve.version import Version


class Encoder:
    """Ids are the numbers themselves; a list of each row's value, as often as the value says."""

    def encode(self, table: pa.Table) -> dict[str, np.ndarray]:
        values = np.array([int(value) for value in table["a"].to_pylist()])
        lists = np.full((len(values), 1, max(1, values.max())), -1)
        for row, value in enumerate(values):
            lists[row, 0, :value] = value
        return {"categorical": values[:, None], "multi_valued": lists}


class Scorer:
    """Adds a row's ids up, over 1000, and one more; notes the sizes of its batches."""

    def __init__(self) -> None:
        self.encoder = Encoder()
        self.batches: list[int] = []

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        ids = inputs["categorical"][:, 0]
        self.batches.append(len(ids))
        if (ids == 666).any():
            raise RuntimeError("broken")
        sums = ids + np.where(inputs["multi_valued"] > 0, inputs["multi_valued"], 0).sum((1, 2))
        scores = np.stack([sums, sums + 1000]).astype(np.float32) / 1000
        return np.where(np.abs(sums) == 444 * 445, np.nan, scores)


def version() -> Version:
    return Version(
        name="v",
        identity=cast(Any, None),
        scorer=cast(Any, Scorer()),
        about={},
        columns={"a": False},
        separator="|",
        features={"categorical": ["a"], "multi_valued": ["b"]},
        raw={"a": "a", "b": "a"},
        outputs=("fused", "other"),
    )


def request(of: Version, *values: Any, longest: int = 1) -> Request:
    texts = all(isinstance(value, str) for value in values)
    table = pa.table({"a": pa.array(values, pa.large_string() if texts else pa.int64())})
    return Request(of, table, {"a": 0}, longest, (Output(0),))


def right(*values: Any) -> list[float]:
    return [int(value) * (1 + max(0, int(value))) / 1000 for value in values]


def run(scenario: Callable[[Batches], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        batches = Batches(Metrics(), **{"max_rows": 10, "max_waiting": 20} | options)
        task = asyncio.create_task(batches.run())
        await scenario(batches)
        task.cancel()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_requests_that_wait_together_are_scored_together_and_answered_apart() -> None:
    v = version()

    async def scenario(batches: Batches) -> None:
        values = [(1,), (2, 3), ("4",), (5, 1, 2), ("6", "0"), (7,) * 6, (8,) * 12, (9,)]
        answers = await asyncio.gather(*[batches.score(request(v, *each)) for each in values])
        for each, answer in zip(values, answers, strict=True):
            np.testing.assert_allclose(answer[0], right(*each), rtol=1e-6)
            np.testing.assert_allclose(answer[1], np.add(right(*each), 1), rtol=1e-6)

    run(scenario, max_waiting=100)
    # As many as fit into 10 rows; a larger request is a batch of its own.
    assert cast(Scorer, v.scorer).batches == [9, 6, 12, 1]


def test_a_wrong_value_and_a_failure_are_of_one_request_alone(capsys: pytest.CaptureFixture[str]) -> None:
    v = version()

    async def scenario(batches: Batches) -> None:
        values = [(1,), ("no number",), (2,), (666,), (3,), (444,)]
        found = await asyncio.gather(
            *[batches.score(request(v, *each)) for each in values], return_exceptions=True
        )
        for number in (0, 2, 4):
            np.testing.assert_allclose(found[number][0], right(*values[number]), rtol=1e-6)  # type: ignore[index]
        assert isinstance(found[1], BadRequest)
        assert "no number" in str(found[1])
        assert isinstance(found[3], Failed)
        assert isinstance(found[5], Failed)

    run(scenario)
    said = capsys.readouterr().err
    assert "broken" in said
    assert "no number" in said


def test_who_is_gone_is_not_computed() -> None:
    v = version()

    async def scenario(batches: Batches) -> None:
        tasks = [asyncio.create_task(batches.score(request(v, number))) for number in range(1, 4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[1], asyncio.CancelledError)
        np.testing.assert_allclose(found[2][0], right(3), rtol=1e-6)  # type: ignore[index]

    run(scenario, wait=0.5)
    assert cast(Scorer, v.scorer).batches == [2]


def test_more_than_may_wait_is_refused() -> None:
    v = version()

    async def scenario(batches: Batches) -> None:
        # A request that is larger than the room is taken by an idle server.
        found = await asyncio.gather(
            *[batches.score(request(v, *[1] * rows)) for rows in (25, 1, 30)], return_exceptions=True
        )
        assert [isinstance(each, Busy) for each in found] == [False, True, True]
        assert (await batches.score(request(v, 1))).shape == (2, 1)

    run(scenario)


def test_a_batch_is_of_one_version() -> None:
    first, second = version(), version()

    async def scenario(batches: Batches) -> None:
        order = [first, first, second, second, first]
        await asyncio.gather(*[batches.score(request(each, 1)) for each in order])

    run(scenario)
    assert cast(Scorer, first.scorer).batches == [2, 1]
    assert cast(Scorer, second.scorer).batches == [2]


def test_a_long_list_does_not_lengthen_those_of_others() -> None:
    v = version()

    async def scenario(batches: Batches) -> None:
        lists = [1, 1, 1 << 17, 1]
        await asyncio.gather(*[batches.score(request(v, 1, longest=each)) for each in lists])

    run(scenario)
    assert cast(Scorer, v.scorer).batches == [2, 2]


def test_a_request_waits_for_others_as_long_as_it_is_told_to() -> None:
    v = version()

    async def scenario(batches: Batches) -> None:
        async def later(seconds: float) -> None:
            await asyncio.sleep(seconds)
            await batches.score(request(v, 1))

        await asyncio.gather(*[later(seconds) for seconds in (0, 0.02, 0.04)])

    run(scenario, wait=20.0, max_rows=3)
    assert cast(Scorer, v.scorer).batches == [3]


def test_free_threads_share_what_waits() -> None:
    v = version()

    async def scenario(batches: Batches) -> None:
        values = range(1, 9)
        answers = await asyncio.gather(*[batches.score(request(v, value)) for value in values])
        for value, answer in zip(values, answers, strict=True):
            np.testing.assert_allclose(answer[0], right(value), rtol=1e-6)

    run(scenario, threads=2, max_rows=100)
    sizes = cast(Scorer, v.scorer).batches
    assert sum(sizes) == 8
    assert max(sizes) <= 4
