"""Trees of YAML and JSON, and their text, harmed."""

import copy
import random
from collections.abc import Iterator
from typing import Any

from cetnet.benchmarks.fuzz.harm.csv_text import recode
from cetnet.benchmarks.fuzz.harm.files import ANY_FILE

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        2**31,
        2**53,
        2**63 - 1,
        2**63,
        10**30,
        0.5,
        1e-300,
        1e308,
        float("nan"),
    ),
    *(
        float("inf"),
        "",
        " ",
        ".",
        "..",
        "x",
        "x" * 300,
        "a b",
        "a.b",
        "a/b",
        "[/b]",
        "é☃",
        "a\nb",
        "*",
        "none",
        "null",
    ),
    *(
        "1",
        "1.5",
        "-1",
        "yes",
        "2024-01-01",
        "user",
        "click",
        "test",
        "train",
        "data",
        "run",
        "auc/fused",
        "\ud83d\ude00",
    ),
    *(
        [],
        {},
        [None],
        [[]],
        {"a": 1},
        ["a", "a"],
        [1, 2],
        {"kind": "dnn"},
        "/dev/null",
        "fm",
        "dhen",
        "cuda",
        "__class__",
    ),
]


def containers(tree: Any) -> Iterator[Any]:
    """All mappings and lists that hold something."""
    if isinstance(tree, (dict, list)) and tree:
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(value)


def harm_tree(rng: random.Random, tree: Any) -> tuple[Any, str]:
    """A tree with one key or value dropped, renamed, added, doubled or replaced; and what was done."""
    tree = copy.deepcopy(tree)
    places = list(containers(tree))
    if not places:
        return rng.choice(VALUES), "all replaced"
    place = rng.choice(places)
    name = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
    change = rng.choice(["replace", "replace", "like", "like", "like", "like", "drop", "add", "rename"])
    if change == "like":
        place[name] = _like(rng, place[name])
        return tree, f"{name}: {place[name]!r:.60}"
    if change == "replace":
        place[name] = rng.choice(VALUES)
        return tree, f"{name}: {place[name]!r:.60}"
    if isinstance(place, list):
        place.insert(0, place[name]) if change == "add" else place.pop(name)
        return tree, f"{change} of entry {name}"
    value = place[name] if change == "add" else place.pop(name)
    if change != "drop":
        new = rng.choice(
            [str(name) + "x", str(name).upper(), "", "x y", "a.b", "user", "ts", 1, None, True, "kind"]
        )
        place[new] = value
    return tree, f"{change} of {name}"


def _like(rng: random.Random, value: Any) -> Any:
    """Another value of the same type, which most often is accepted."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([0, 1, 2, 3, 4, 7, 8, 16, 33, 64, 1000, 2**16, 2**20, 2**31, 2**40, -1])
    if isinstance(value, float):
        return rng.choice([0.0, 1e-30, 0.1, 0.5, 1.0, 2.0, 1e6, 1e30, -1.0])
    if isinstance(value, str):
        return rng.choice(
            [
                "user",
                "item",
                "tags",
                "history",
                "price",
                "ts",
                "click",
                "note",
                "sequence",
                "dense",
                "train",
                "x",
            ]
        )
    return value[::-1] if isinstance(value, list) else value


def harm_yaml(rng: random.Random, text: bytes) -> tuple[bytes, str]:
    """YAML's text: pieces of its syntax put in, cut, doubled; nested deeply; in another encoding."""
    pieces = [
        b"&a ",
        b"*a",
        b"<<: *a\n",
        b"!!set ",
        b"!x ",
        b"[",
        b"}",
        b": ",
        b"\n  ",
        b"\t",
        b"- ",
        b"|",
        b"'",
        b"\0",
        b"%",
        b"---\n",
        b"#",
    ]
    match rng.randrange(7):
        case 0:
            place = rng.randrange(len(text) + 1)
            return text[:place] + rng.choice(pieces) + text[place:], "a piece of syntax put in"
        case 1:
            return recode(rng, text.replace(b"dnn:", "d\u00e9j\u00e0:".encode())), "another encoding"
        case 2:
            return text + b"x: " + b"[" * 3000 + b"]" * 3000, "nested deeply"
        case 3:
            return text + b"\ny: &a [1]\nx: [*a, *a]\n", "an anchor"
        case 4:
            lines = text.split(b"\n")
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            return b"\n".join(lines), "a line twice"
        case 5:
            return rng.choice(ANY_FILE)(rng, text), "bytes"
    return text + b"x: '" + b"x" * 2_000_000 + b"'", "two million characters"
