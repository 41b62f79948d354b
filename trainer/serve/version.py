"""Exports that are served: found, loaded, tried on their own examples, watched for newer ones."""

import asyncio
import gc
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.trainer.console import console
from cetnet.trainer.errors import UserError
from cetnet.trainer.export.place import ABOUT
from cetnet.trainer.export.targets import Target
from cetnet.trainer.failures import explain
from cetnet.trainer.serve.exports import Identity, content_of, exports_in, fastest_served

if TYPE_CHECKING:
    from cetnet.trainer.export.scorer import Scorer
    from cetnet.trainer.serve.metrics import Metrics

_EVERY = 1.0  # seconds between looks at the folder


@dataclass(frozen=True)
class Version:
    """An export that was loaded and gave its examples' answers.

    Attributes:
        name: of its folder.
        identity: which it is.
        scorer: encodes and scores.
        about: its about.json.
        columns: the raw columns that it reads, and whether they hold lists.
        separator: of lists that are text.
        features: of each input of the model, the features in their order.
        raw: of each feature, its raw column.
        outputs: names of what it gives, fused first.
    """

    name: str
    identity: Identity
    scorer: "Scorer"
    about: dict[str, Any]
    columns: dict[str, bool]
    separator: str
    features: dict[str, list[str]]
    raw: dict[str, str]
    outputs: tuple[str, ...]

    @property
    def run(self) -> str:
        """Name of the run that it was exported from."""
        return str(self.about.get("run", ""))

    @property
    def step(self) -> str:
        """Steps that it was trained."""
        return str(self.about.get("step", ""))


def load_version(identity: Identity, target: Target | None) -> Version:
    """Load an export and compare what it says of its own examples with what it should.

    Raises:
        UserError: it can't be loaded, or its answers are others.
        Exception: whatever a damaged file makes a library raise.
    """
    from cetnet.trainer.export.scorer import Scorer

    folder = identity.folder
    scorer = Scorer(folder, target or fastest_served(folder))
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    request = scorer.encoder.request
    of_list = ("multi_valued", "sequence")
    version = Version(
        name=folder.resolve().name,
        identity=identity,
        scorer=scorer,
        about=about,
        columns={entry["column"]: entry["kind"] in of_list for entry in request["columns"]},
        separator=request["separator"],
        features={entry["name"]: entry["features"] for entry in request["inputs"]},
        raw={entry["feature"]: entry["column"] for entry in request["columns"]},
        outputs=tuple(scorer.outputs),
    )
    with (folder / "examples.parquet").open("rb") as file:
        examples = pq.read_table(file)
    _check_examples(version, examples)
    if Identity.of(folder) != identity:
        raise UserError(f"{folder}: changed while it was read")
    return version


def _check_examples(version: Version, examples: pa.Table) -> None:
    """Raise UserError unless the answers, of all rows and of the first alone, are those written beside them."""
    tolerance = float(version.about.get("tolerance", 1e-6))
    for rows in (examples, examples.slice(0, 1)):
        for output, scores in version.scorer.score(rows).items():
            expected = rows[f"expected/{output}"].to_numpy()
            difference = float(np.abs(scores - expected).max(initial=0))
            if not difference <= tolerance:  # NaN is none
                raise UserError(
                    f"{version.identity.folder}: its examples should give other answers ({output} differs by "
                    f"{difference:.2g}); export it again"
                )


@dataclass
class _Refusal:
    """Why an export was refused, what was in its folder then, and what was there when it was looked at last."""

    why: str
    content: tuple[int, int]
    seen: tuple[int, int]

    def still(self, content: tuple[int, int]) -> bool:
        """Whether there is nothing to try again: neither has the folder changed since, nor has it ended to change."""
        changing, self.seen = content != self.seen, content
        return changing or content == self.content


class Versions:
    """The version that answers, and the watch for newer ones.

    Args:
        folder: an export, or a folder of exports of which the newest is served.
        target: the kind of model file; None for the best there is.
        metrics: told of swaps.

    Attributes:
        current: the version that answers; None until the first one is loaded.
    """

    def __init__(self, folder: Path, target: Target | None, metrics: "Metrics") -> None:
        self._folder, self._target, self._metrics = folder, target, metrics
        self._refused: dict[Identity, _Refusal] = {}
        self._looking = asyncio.Lock()
        self.current: Version | None = None

    async def look(self) -> None:
        """Load the newest version if it isn't the current one; those that were refused are passed over.

        But one that was refused while it was copied there, file by file, is tried again when that has ended.
        """
        async with self._looking:
            refused = []
            for identity in await asyncio.to_thread(exports_in, self._folder):
                if self.current is not None and identity == self.current.identity:
                    break
                content = await asyncio.to_thread(content_of, identity.folder)
                if (refusal := self._refused.get(identity)) and refusal.still(content):
                    continue
                try:
                    version = await asyncio.to_thread(load_version, identity, self._target)
                except Exception as error:
                    # One that is gone, or another by now, is looked at again.
                    if await asyncio.to_thread(Identity.of, identity.folder) == identity:
                        self._metrics.refused.inc()
                        self._refused[identity] = _Refusal(explain(error)[0], content, content)
                        refused.append(identity)
                    continue
                self._swap(version)
                break
            if self.current is not None:
                for identity in refused:
                    console.print(
                        f"refused {identity.folder}: {self._refused[identity].why}; {self.current.name} answers",
                        style="bold red",
                    )

    def _swap(self, version: Version) -> None:
        if self.current is not None:
            self._metrics.model.remove(self.current.name, self.current.run, self.current.step)
            self._metrics.swaps.inc()
        self.current = version
        self._metrics.model.labels(version.name, version.run, version.step).set(1)
        self._metrics.loaded.set(time.time())
        console.print(
            f"serving {version.identity.folder} ({version.scorer.target}; run {version.run}, step {version.step})"
        )

    @property
    def why_none(self) -> str:
        """Why no version could be loaded: the first refusal."""
        first = next(iter(self._refused.values()), None)
        return first.why if first else f"{self._folder}: no export is left in it"

    async def watch(self) -> None:
        """Look once a second, for ever.

        What a version and the libraries have made is left out of garbage collection, which would hold requests up,
        but not before those of the version before have been answered.
        """
        frozen = None
        while True:
            await asyncio.sleep(_EVERY)
            if frozen is not self.current:
                frozen = self.current
                gc.unfreeze()
                gc.collect()
                gc.freeze()
            await self.look()
