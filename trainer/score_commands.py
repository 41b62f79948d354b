"""`cetnet evaluate` and `cetnet predict`: what is to be scored is found and checked before torch is loaded."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir, mkdtemp
from typing import Annotated, Any, NamedTuple

import typer

from cetnet.trainer.errors import UserError
from cetnet.trainer.versions import check_loading

Run = Annotated[Path, typer.Argument(help="Folder of a run.")]
Data = Annotated[
    Path,
    typer.Argument(
        help="A prepared dataset, or raw rows: a Parquet or CSV file, or a directory of them, as `cetnet prepare` "
        "takes, which are encoded as the run's were."
    ),
]
Split = Annotated[
    str | None, typer.Option(help="Split to score; default: test. Raw rows without splits are scored all.")
]
NumProcesses = Annotated[int, typer.Option("--nproc", min=1, help="Processes to start on this machine.")]
Launch = Callable[[list[str], int, Callable[[], object] | None], None]

_STAGED = ".cetnet-csv-"


def add_evaluate(app: typer.Typer, launch: Launch) -> None:
    """Give an app the command; `launch` runs a command line in so many processes, after a check, and exits."""

    @app.command()
    def evaluate(
        run: Run,
        data: Data,
        split: Split = None,
        by: Annotated[
            str | None,
            typer.Option(
                metavar="COLUMN,...",
                help="Also the fused output's metrics by each value of these columns of the files: the 20 most "
                "frequent, and the others together. Times count by day (UTC).",
            ),
        ] = None,
        json: Annotated[Path | None, typer.Option(help="Also write all of it to this file.")] = None,
        nproc: NumProcesses = 1,
    ) -> None:
        """Metrics of a trained model on a split, or on raw rows: NE, AUC, gAUC, LogLoss, calibration.

        NE is against the base rate of the rows that are scored; within a slice
        (--by), against that slice's own.
        """
        from cetnet.trainer.files import check_writable
        from cetnet.trainer.slices import check_sliced

        if json is not None:
            check_writable(json)
            _check_apart(json, data)
        columns = column_names(by, "--by")
        with scored_rows(run, data, split, columns, nproc, labelled=True) as opened:
            if opened.dataset is not None:
                check_sliced(opened.dataset, columns)
            if opened.launches:
                arguments = ["evaluate", str(run), str(opened.path), *_option("--split", opened.split)]
                arguments += [*_option("--by", by), *_option("--json", json)]
                launch(arguments, nproc, opened.before)
            check_loading()
            from cetnet.trainer.evaluate import evaluate_run

            evaluate_run(run, opened.dataset, columns, json)


def add_predict(app: typer.Typer, launch: Launch) -> None:
    """As `add_evaluate`."""

    @app.command()
    def predict(
        run: Run,
        data: Data,
        out: Annotated[Path, typer.Option(help="Parquet file to write.")],
        split: Split = None,
        keep: Annotated[
            str | None,
            typer.Option(
                metavar="COLUMN,...",
                help="Columns of the files that are passed through, as they are there: keys.",
            ),
        ] = None,
        nproc: NumProcesses = 1,
    ) -> None:
        """Write the probabilities of the fused output and of every component, a row per row of the split, or raw row.

        The rows need no label. They are in the order of the files.
        """
        from cetnet.trainer.files import check_writable
        from cetnet.trainer.given import check_kept

        check_writable(out)
        _check_apart(out, data)
        columns = column_names(keep, "--keep")
        with scored_rows(run, data, split, columns, nproc, labelled=False, beside=out) as opened:
            kept = check_kept(run, opened.dataset, columns)
            if opened.launches:
                arguments = ["predict", str(run), str(opened.path), "--out", str(out)]
                arguments += [*_option("--split", opened.split), *_option("--keep", keep)]
                launch(arguments, nproc, opened.before)
            check_loading()
            from cetnet.trainer.evaluate import predict_run

            predict_run(run, opened.dataset, out, kept)


def column_names(columns: str | None, option: str) -> list[str]:
    """The columns that an option names, with commas between them; raises UserError for one without a name."""
    names = columns.split(",") if columns is not None else []
    if "" in names:
        raise UserError(f"{option} {columns}: a name is empty; give columns with commas between them")
    return list(dict.fromkeys(names))


def _check_apart(out: Path, data: Path) -> None:
    """Raise UserError if a file would replace raw rows that are scored, or be taken for some next time."""
    if not (data / "schema.yaml").exists() and out.resolve().is_relative_to(data.resolve()):
        raise UserError(f"{out}: {data} is what is scored; name another place")


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [f"{name}={value}"]


class _Opened(NamedTuple):
    """What is to be scored.

    Attributes:
        path, split: what processes that this one starts are told of it.
        dataset: None if they have to wait for `before`.
        launches: whether this process only starts others.
        before: is called before they start.
    """

    path: Path
    split: str | None
    dataset: Any
    launches: bool
    before: Callable[[], object]


@contextmanager
def scored_rows(
    run: Path,
    data: Path,
    split: str | None,
    columns: Sequence[str],
    nproc: int,
    *,
    labelled: bool,
    beside: Path | None = None,
) -> Iterator[_Opened]:
    """Check a run and what it is to score; CSV becomes temporary Parquet files, `beside` a file or in TMPDIR."""
    from cetnet.trainer.check_settings import check_labelled, check_scored

    launches = nproc > 1 and "RANK" not in os.environ
    trained = partial(_check_trained, run)
    if (data / "schema.yaml").exists():
        dataset = check_scored(run, data, split or "test", labelled=labelled)
        yield _Opened(data, split, dataset, launches, trained)
        return
    from cetnet.trainer.prepare.raw_split import find_rows, raw_split
    from cetnet.trainer.prepare.staged_csv import check_csv, stage_csv, staged_rows
    from cetnet.trainer.processes.signals import cleaning_up

    rows = staged_rows(data) or find_rows(data, split)
    if rows.format == "parquet":
        yield _Opened(data, split, check_labelled(partial(raw_split, run, rows), labelled), launches, trained)
        return
    check_csv(run, rows, columns, labelled=labelled)
    place = beside.absolute().parent if beside else None
    if place is not None and not place.is_dir():
        place = None
    _remove_left(place or Path(gettempdir()))
    # Not a TemporaryDirectory: the first rank to end, forked from here, would remove it at its exit.
    with cleaning_up(), _held(Path(mkdtemp(prefix=_STAGED, dir=place))) as staged:
        try:
            stage = partial(stage_csv, run, rows, columns, staged)
            if launches:
                yield _Opened(staged, None, None, launches, lambda: (trained(), stage()))
            else:
                stage()
                staged_split = staged_rows(staged)
                assert staged_split is not None
                dataset = check_labelled(partial(raw_split, run, staged_split), labelled)
                yield _Opened(staged, None, dataset, launches, trained)
        finally:
            rmtree(staged, ignore_errors=True)


@contextmanager
def _held(staged: Path) -> Iterator[Path]:
    """A folder that another process would not remove while this one lives, or those that it has forked."""
    from cetnet.trainer.files import lock_held

    with lock_held(staged / "lock", f"{staged} is another process's: try again"):
        yield staged


def _remove_left(place: Path) -> None:
    """Remove what killed processes left of raw CSV in a folder."""
    for left in place.glob(f"{_STAGED}*/lock"):
        with suppress(UserError, OSError), _held(left.parent):
            rmtree(left.parent, ignore_errors=True)


def _check_trained(run: Path) -> None:
    from cetnet.trainer.evaluate import load_trained

    load_trained(run)
