"""YAML of configurations: strings, numbers, truth values, lists and mappings; a mistake in it is never let pass."""

import math
from typing import Any

import yaml

_LARGEST = 100_000
"""Values in a file, those that aliases repeat counted each time: a short file can stand for billions."""

_DEEPEST = 50
_LONGEST = 1 << 20


def read_strict_yaml(text: str) -> Any:
    """What a text holds; dates and other words that YAML has types for are strings.

    Raises:
        yaml.YAMLError: it is no YAML, has a key twice in a mapping or one that isn't a string, a type of its own, a
            value that contains itself, a character that no file name may have, is too deep or stands for too much.
    """
    if len(text) > _LONGEST:
        raise yaml.YAMLError(f"{len(text):,} characters are too many, {_LONGEST:,} are the most")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {}, 0)
        return loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise yaml.YAMLError(f"a value doesn't fit its type: {error}") from None
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates, binary data and sets, and with unique keys."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level == _DEEPEST:  # here, since the scanner takes seconds for a thousand
            raise yaml.scanner.ScannerError(None, None, "nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what `<<` brings in before a mapping's own pairs; PyYAML 6.0.4 loses the overrides of short keys."""
        merged, own = [], []
        for key, value in node.value:
            if key.tag != _MERGE:
                own.append((key, value))
                continue
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for source in reversed(sources):  # the first of a list has precedence, so it comes last
                if not isinstance(source, yaml.MappingNode):
                    raise _error(source, "<< wants a mapping, or a list of them")
                self.flatten_mapping(source)
                merged += source.value
        node.value = merged + own

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        for name in mapping:
            if not isinstance(name, str):
                raise _error(node, f"the key {_shown(name)} is not a string; quote it")
        return mapping

    def construct_scalar(self, node: Any) -> str:
        text: str = super().construct_scalar(node)
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
            raise _error(node, "a character that is none (NUL or half a surrogate pair)")
        return text

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        number = self.construct_yaml_int(node)
        if not -(2**63) <= number < 2**63:
            raise _error(node, "a number of more than 64 bits")
        return number


_MERGE = "tag:yaml.org,2002:merge"
_KEPT = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix("tag:yaml.org,2002:") in _KEPT
} | {"tag:yaml.org,2002:int": _Loader.construct_integer}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check(node: yaml.Node, known: dict[int, tuple[float, int]], depth: int) -> tuple[float, int]:
    """Number of values that a node stands for, and of levels below it; no key of it is there twice."""
    size, height = known.get(id(node), (0, 0))
    if size == math.inf:
        raise _error(node, "a value contains itself")
    if depth + height > _DEEPEST:
        raise _error(node, "nested too deeply")
    if not size:
        known[id(node)] = math.inf, 0  # until it is known
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        below = [_check(child, known, depth + 1) for child in children]
        size = 1 + sum(size for size, _ in below)
        height = max((1 + height for _, height in below), default=0)
        known[id(node)] = size, height
    if size > _LARGEST:
        raise _error(node, f"more than {_LARGEST:,} values, those that aliases repeat counted each time")
    return size, height


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise _error(key, f"the key {_shown(key.value)} is there twice")
            seen.add(key.value)


def _error(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _shown(value: Any) -> str:
    return repr(value)[:80]
