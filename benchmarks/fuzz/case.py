"""A case: a command that is made from a seed, with its files in a folder of their own, and judged."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cetnet.benchmarks.fuzz.command import Command, Ended
from cetnet.benchmarks.fuzz.harm import files, trees
from cetnet.benchmarks.fuzz.judge import Failure, failures_of_end, leftovers
from cetnet.benchmarks.fuzz.sandbox import mount

Check = Callable[[], list[Failure]]
KEYS = {"run": "run_dir", "data": "data.path", "hashed": "data.path"}
"""Keys of the experiment that name what isn't an argument."""


@dataclass
class Case:
    """A command that is being made, and later judged.

    Attributes:
        seed: makes it, and only it.
        bases: folder of the unharmed files.
        folder: where the command stands.
        kind: row of the table.
        done: what was harmed.
        harmless: what was changed and must not matter.
        inputs, outputs: files and folders that it reads and makes, as its arguments or its files name them.
        checks: what must hold if it succeeds.
        made: outputs that are whole or not there, whatever happens.
    """

    seed: int
    bases: Path
    folder: Path
    rng: random.Random
    kind: str
    arguments: list[str] = field(default_factory=list)
    surroundings: dict[str, Any] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    before: frozenset[Path] = frozenset()
    harmless: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    mounts: list[Path] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)

    def take(self, *names: str) -> None:
        """Copy unharmed files or folders to where the command stands."""
        for name in names:
            source, target = self.bases / name, self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)

    def at(self, name: str) -> Path:
        """Where an input or output is, whatever it is called now."""
        return self.folder / self._names.get(name, name)

    def point(self, old: str, new: str) -> None:
        """Let the arguments name something else."""
        self._names[old] = new
        named = False
        for place, argument in enumerate(self.arguments):
            key, equals, value = argument.rpartition("=")
            if value == old:
                self.arguments[place] = f"{key}{equals}{new}"
                named = True
        if not named and old in KEYS:
            self.arguments.append(f"{KEYS[old]}={json.dumps(new, ensure_ascii=False)}")

    def rename(self, old: str, new: str) -> None:
        """Call an input or output otherwise; raises OSError or ValueError if the file system has no such name."""
        if (self.folder / old).exists():
            (self.folder / old).rename(self.folder / new)
        else:
            (self.folder / new).mkdir()
            (self.folder / new).rmdir()
        self.point(old, new)

    def mount(self, place: Path, *arguments: str) -> None:
        """Mount something, until the case is over."""
        place.mkdir(exist_ok=True)
        mount(*arguments, str(place))
        self.mounts.append(place)

    def harm_file(self, path: Path, ways: list[files.Bytes]) -> None:
        """Do one of the ways to a file."""
        way = self.rng.choice(ways)
        path.write_bytes(way(self.rng, path.read_bytes()))
        self.done.append(f"{path.relative_to(self.folder)}: {(way.__doc__ or '').rstrip('.')}")

    def harm_yaml(self, path: Path) -> None:
        """Harm what a YAML file says, or its text."""
        if self.rng.random() < 0.8:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
                content, what = trees.harm_tree(self.rng, content)
                self.done.append(f"{path.name}: {what}")
            path.write_text(yaml.dump(content, sort_keys=False), encoding="utf-8")
        else:
            content, what = trees.harm_yaml(self.rng, path.read_bytes())
            self.done.append(f"{path.name}: {what}")
            path.write_bytes(content)

    def harm_json(self, path: Path) -> None:
        """Harm what a file of JSON says, or its bytes."""
        if self.rng.random() < 0.6:
            content, what = trees.harm_tree(self.rng, json.loads(path.read_text(encoding="utf-8")))
            self.done.append(f"{path.relative_to(self.folder)}: {what}")
            path.write_text(json.dumps(content), encoding="utf-8")
        else:
            self.harm_file(path, files.ANY_FILE)

    def command(self) -> Command:
        """The command; from now on what is new in the folder is its own."""
        self.before = frozenset(self.folder.rglob("*"))
        self.made = [name for name in self.made if not self.at(name).exists()]
        return Command(self.arguments, self.folder, **self.surroundings)

    def judge(self, ended: Ended) -> list[Failure]:
        """All that went wrong."""
        command = Command(self.arguments, self.folder, **self.surroundings)
        found = failures_of_end(command, ended)
        if not ended.hung and command.stop_after is None:
            left = leftovers(self.before, self.folder)
            if left and (ended.code != 2 or not any(".work" in part for part in left[0].parts)):
                found.append(Failure("left file", f"{self.kind} {left[0].suffix or left[0].name}"))
        made = [name for name in self.made if os.path.exists(self.at(name))]  # noqa: PTH110 - of names too long, too
        late = command.stop_after is not None or 1 in command.streams  # perhaps when all was done
        if ended.code and not found and not late:
            found += [Failure("half-written", f"{self.kind}: {name}") for name in made]
        for check in self.checks if ended.code == 0 or (late and made and not found) else ():
            try:
                found += check()
            except (OSError, ValueError, LookupError) as error:  # Arrow's are among them
                found.append(Failure("unreadable", f"{self.kind}: {type(error).__name__}"))
        if not self.done and ended.code and not found:
            found.append(
                Failure("unharmed", f"{self.kind}: exit code {ended.code} {'; '.join(self.harmless)}")
            )
        return found
