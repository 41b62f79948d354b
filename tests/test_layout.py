"""The layout: who may import whom, no circles, and nothing longer than one can read."""

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import cetnet
from tests.paths import ROOT

ROOMS = ("models", "sharding", "trainer", "benchmarks", "launch")  # each imports those to its left only
MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 100


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether at its top; those for type checkers only don't count."""
    inside = {
        node
        for block in ast.walk(parsed(path))
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(block)
    }
    unread = {
        node
        for block in ast.walk(parsed(path))
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(parsed(path)):
        if node in unread:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            copied = (
                path.parent == ROOT / "trainer/encoder"
            )  # beside exported models, where there is no cetnet
            assert not node.level or copied, f"{path}:{node.lineno}: a relative import"
            module = f"cetnet.trainer.encoder.{node.module}" if node.level else node.module
            for alias in node.names:
                yield f"{module}.{alias.name}", node not in inside


def room_imports() -> dict[str, dict[str, bool]]:
    """Every module of the rooms -> the modules of the rooms that it imports."""
    modules = {
        ".".join(("cetnet", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in python_files(*ROOMS)
    }
    found: dict[str, dict[str, bool]] = {module: {} for module in modules}
    for path in python_files(*ROOMS):
        module = ".".join(("cetnet", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for name, at_top in imports(path):
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                found[module][target] = found[module].get(target, False) or at_top
    return found


def test_imports_point_one_way() -> None:
    wrong = []
    for module, targets in room_imports().items():
        room = module.split(".")[1]
        for target in targets:
            if ROOMS.index(target.split(".")[1]) > ROOMS.index(room):
                wrong.append(f"{module} -> {target}")
    # The command line is where all rooms meet.
    assert [each for each in wrong if not each.startswith("cetnet.trainer.cli -> ")] == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: set(targets) for module, targets in room_imports().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


def test_everything_is_imported_by_the_one_root() -> None:
    old = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in python_files(*ROOMS, "tests")
        for name, _ in imports(path)
        if name.split(".")[0] in ROOMS
    ]
    assert old == []
    package = Path(cetnet.__file__).parent
    assert {room for room in ROOMS if (package / room / "__init__.py").is_file()} == set(ROOMS)


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in python_files(*ROOMS)} - {ROOT / "benchmarks/chaos/recorder"}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_no_file_and_no_function_is_too_long() -> None:
    long = []
    for path in python_files(*ROOMS, "tests"):
        name = os.path.relpath(path, ROOT)
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES:
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = int(node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{name}: {node.name} has {lines} lines")
    assert long == []


def test_no_console_takes_texts_for_markup() -> None:
    consoles = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files(*ROOMS, "tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Console"
    ]
    assert consoles == []


def test_no_path_is_taken_for_a_pattern() -> None:
    """polars reads whatever a path with * ? [ matches, unless it is told not to."""
    globbing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files(*ROOMS)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and re.fullmatch(r"pl\.(scan_\w+|read_parquet|read_ipc)", ast.unparse(node.func))
        and not any(
            keyword.arg == "glob" and ast.unparse(keyword.value) == "False" for keyword in node.keywords
        )
    ]
    assert globbing == []


def test_text_is_utf8_whatever_the_locale() -> None:
    """As ruff's PLW1514, which knows few of the objects that are paths."""
    locale = []
    for path in python_files(*ROOMS):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                opened = node.func.attr == "open" and modes[:1] in (["r"], ["w"], ["a"], ["x"])
                is_text = node.func.attr in ("read_text", "write_text") or opened
                if is_text and not any(keyword.arg == "encoding" for keyword in node.keywords):
                    locale.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert locale == []
