"""How much of their width embedding tables use: singular values, information abundance, effective rank.

Guo et al. (On the Embedding Collapse when Scaling up Recommendation Models, arXiv 2310.04400) call it embedding
collapse if a few singular values of a table outweigh the others. What is measured here is a trained table as it is,
not centred, each row once, however often its value occurs; but without row 0, which stands for padding and for values
that are too rare or unknown. An ensemble's tables of one feature are measured each alone and side by side
(`[E1|E2|...|Ek]`): that is what is to be compared with a single table of the same total width.
"""

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from cetnet.benchmarks.study.definition import Run
from cetnet.trainer.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cetnet.trainer.checkpoint.object_path import Place

Floats = NDArray[np.float64]

_GRAM_ROWS = 65_536


class Spectrum(BaseModel):
    """Of one table, or of an ensemble's tables side by side.

    Attributes:
        owner: the component; empty for all of them side by side.
        table: name of the table, as the schema has it.
        values: number of its rows without row 0.
        width: numbers in a row.
        singular_values: the min(values, width) largest, in descending order.
    """

    owner: str
    table: str
    values: int
    width: int
    singular_values: list[float]

    @property
    def information_abundance(self) -> float:
        """IA = sum(sigma) / max(sigma), from 1 to the width (Guo et al., definition 1); NaN for a table of zeros."""
        return information_abundance(np.array(self.singular_values))

    @property
    def effective_rank(self) -> float:
        """From 1 to the width; NaN for a table of zeros."""
        return effective_rank(np.array(self.singular_values))


class Spectra(BaseModel):
    """Of all tables of a run, from the checkpoint of that name, written then (mtime in ns)."""

    checkpoint: str
    written: int = 0
    spectra: list[Spectrum]

    @property
    def side_by_side(self) -> dict[str, Spectrum]:
        """By table, the spectrum of all components' tables together."""
        return {spectrum.table: spectrum for spectrum in self.spectra if not spectrum.owner}


class Summary(NamedTuple):
    """How much of their width a run's tables use: means over tables.

    `abundance` and `rank` are of the components' tables side by side, `width` wide in all; the others of one alone.
    """

    copies: float
    width: float
    abundance: float
    rank: float
    abundance_of_one: float
    rank_of_one: float


def information_abundance(sigma: Floats) -> float:
    """Sum of the singular values over the largest; NaN if all are 0."""
    return float(sigma.sum() / sigma.max()) if sigma.max() > 0 else float("nan")


def effective_rank(sigma: Floats) -> float:
    """exp of the entropy of sigma / sum(sigma) (Roy and Vetterli, EUSIPCO 2007); NaN if all are 0."""
    if not sigma.max() > 0:
        return float("nan")
    share = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def read_spectra(run: Run) -> Spectra | None:
    """Spectra of a run's tables, from `seed<k>.spectra.json` beside its folder or, if that is of another checkpoint
    or absent, from the newest checkpoint; None if there is neither.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    from cetnet.trainer.checkpoint.checkpoints import latest_checkpoint
    from cetnet.trainer.checkpoint.store import checkpoint_place
    from cetnet.trainer.files import write_json

    file = run.folder.with_name(f"{run.folder.name}.spectra.json")
    checkpoint = latest_checkpoint(checkpoint_place(run.folder, run.checkpoints))
    try:
        written = (checkpoint / ".metadata").stat().st_mtime_ns if checkpoint else 0
    except FileNotFoundError:
        raise UserError(
            f"{checkpoint}: damaged (.metadata is missing); remove it or move it away, and report again"
        ) from None
    if file.exists():
        try:
            cached = Spectra.model_validate_json(file.read_bytes())
        except ValidationError:
            raise UserError(f"{file}: not readable; remove it, and it is made again") from None
        result = run.folder / "result.json"
        if checkpoint is None:  # of this run, unless that was repeated since
            repeated = result.exists() and result.stat().st_mtime_ns > file.stat().st_mtime_ns
            return None if repeated else cached
        if (cached.checkpoint, cached.written) == (checkpoint.name, written):
            return cached
    if checkpoint is None:
        return None
    spectra = Spectra(checkpoint=checkpoint.name, written=written, spectra=list(spectra_of(checkpoint)))
    write_json(file, spectra.model_dump())
    return spectra


def spectra_of(checkpoint: "Place") -> Iterator[Spectrum]:
    """Spectra of the trained tables of a checkpoint; what components have beside their embeddings is left out.

    Memory: twice the largest shard of the tables that are compared, and the Gram matrix of their total width.
    """
    from cetnet.trainer.checkpoint.checkpoints import SavedTable, SavedTables

    saved = SavedTables(checkpoint)
    groups: dict[str, list[SavedTable]] = {}
    for table in saved.tables:
        if table.owner != "pretrained" and not table.name.endswith("__extra") and table.rows > 1:
            groups.setdefault(table.name, []).append(table)
    for name, tables in groups.items():
        gram = gram_matrix(saved.blocks(tables))
        values, start = tables[0].rows - 1, 0
        for table in tables:
            own = slice(start, start + table.dim)
            start += table.dim
            yield _spectrum(table.owner, name, values, gram[own, own])
        yield _spectrum("", name, values, gram)


def gram_matrix(blocks: Iterable["Tensor"]) -> Floats:
    """Sum over all rows but the first of their outer products with themselves, `[d, d]`, in double precision.

    Its eigenvalues are the squares of the singular values. (Those below some 1e-8 of the largest are lost in
    rounding; an SVD would need the whole table in memory.)
    """
    gram, skipped = np.zeros(()), 1
    for block in blocks:
        for start in range(0, len(block), _GRAM_ROWS):
            part = block[start : start + _GRAM_ROWS].double().numpy()[skipped:]
            gram = gram + part.T @ part
            skipped = 0
    return gram


def _spectrum(owner: str, table: str, values: int, gram: Floats) -> Spectrum:
    sigma = np.sqrt(np.linalg.eigvalsh(gram).clip(0))[::-1][:values]
    return Spectrum(
        owner=owner, table=table, values=values, width=len(gram), singular_values=[float(s) for s in sigma]
    )


def wide_enough(runs: Iterable[Spectra]) -> list[str]:
    """The tables that could have full rank in every run: those with as many values as any is wide.

    If there is none, the one with the most values.
    """
    together = [spectrum for run in runs for spectrum in run.side_by_side.values()]
    width = max((spectrum.width for spectrum in together), default=0)
    values = {spectrum.table: spectrum.values for spectrum in together}
    most = max(values.values(), default=0)
    return [table for table, number in values.items() if number >= min(width, most)]


def summarize(run: Spectra, tables: Sequence[str]) -> Summary:
    """Means over those of `tables` that the run has."""
    together = [run.side_by_side[table] for table in tables if table in run.side_by_side]
    alone = [spectrum for spectrum in run.spectra if spectrum.owner and spectrum.table in tables]
    return Summary(
        copies=len(alone) / len(together),
        width=fmean(spectrum.width for spectrum in together),
        abundance=fmean(spectrum.information_abundance for spectrum in together),
        rank=fmean(spectrum.effective_rank for spectrum in together),
        abundance_of_one=fmean(spectrum.information_abundance for spectrum in alone),
        rank_of_one=fmean(spectrum.effective_rank for spectrum in alone),
    )
