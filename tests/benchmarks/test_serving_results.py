"""What was measured of serving is judged by its limits."""

from typing import Any

import pytest

from cetnet.benchmarks.serving.results import markdown

GOOD: dict[str, Any] = {
    "machine": "2 cores",
    "started": "now",
    "failed": {},
    # In its own round pt2 is faster, though in none by the medians.
    "rates": {
        "trainer's evaluation": [10.0, 20.0, 30.0],
        "aoti": [15.0, 30.0, 46.0],
        "pt2": [10.0, 20.0, 29.0],
    },
    "int8": {
        "table_bytes": 30,
        "table_bytes_float32": 100,
        "compared": {"rows": 40_000, "ne": 0.80015, "ne_float32": 0.8},
    },
    "server": {
        "p99_over_lone": 5.0,
        "resident_bytes": 1.5e9,
        "tables_bytes": 1e9,
        "swaps": 10,
        "swap_requests": 9,
        "swap_lost": 0,
        "fuzzed": 10_000,
        "fuzz_wrong": [],
        "fuzz_lives": True,
    },
    "like": {"prepare": [5.0], "prepare --like": [6.0], "ratio": 1.2},
}


def judged(results: dict[str, Any]) -> dict[str, str]:
    lines = [
        line.split(" | ") for line in markdown(results).splitlines() if line.endswith((" yes |", " no |"))
    ]
    return {cells[0].removeprefix("| "): cells[-1].removesuffix(" |") for cells in lines}


def test_all_reached() -> None:
    assert list(judged(GOOD).values()) == ["yes"] * 9
    assert "| rows/s of pt2 / trainer's evaluation | >= 1.0 | 1.00 (0.97 to 1.00) | yes |" in markdown(GOOD)


@pytest.mark.parametrize(
    ("part", "changed", "what"),
    [
        ("rates", {"aoti": [14.0, 29.0, 46.0]}, "rows/s of aoti / trainer's evaluation"),
        ("int8", {"table_bytes": 31}, "int8 tables: bytes / fp32's"),
        (
            "int8",
            {"compared": {"rows": 40_000, "ne": 0.8002, "ne_float32": 0.8}},
            "int8 tables: NE on 40,000 rows",
        ),
        ("server", {"p99_over_lone": 5.1}, "server: p99 at 60 % of its peak / median of a lone request"),
        ("server", {"swap_lost": 1}, "requests lost of 9 in 10 swaps under load"),
        ("server", {"swaps": 9}, "requests lost of 9 in 9 swaps under load"),
        (
            "server",
            {"fuzz_lives": False},
            "of 10,000 fuzzed requests: end it, hang it, or are answered wrongly",
        ),
        ("server", {"resident_bytes": 1.6e9}, "memory of the server beside the tables"),
        ("like", {"ratio": 0.99}, "prepare --like / prepare, rows/s"),
    ],
)
def test_not_reached(part: str, changed: dict[str, Any], what: str) -> None:
    found = judged({**GOOD, part: {**GOOD[part], **changed}})
    assert [name for name, reached in found.items() if reached == "no"] == [what]


def test_a_part_that_failed_is_told() -> None:
    results = {name: GOOD[name] for name in ("machine", "started", "like")}
    found = markdown({**results, "failed": {"server": "OSError: no port"}})
    assert "| server | | failed: OSError: no port | no |" in found
