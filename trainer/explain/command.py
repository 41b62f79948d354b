"""`cetnet explain`: what is asked on the command line, checked before torch is loaded."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cetnet.trainer.errors import UserError
from cetnet.trainer.versions import check_loading

Launch = Callable[[list[str], int, Callable[[], object] | None], None]


def add_explain(app: typer.Typer, launch: Launch) -> None:
    """Give an app the command; `launch` runs a command line in so many processes, after a check, and exits."""

    @app.command()
    def explain(
        run: Annotated[Path, typer.Argument(help="Folder of a run.")],
        data: Annotated[Path, typer.Argument(help="A prepared dataset.")],
        split: Annotated[str, typer.Option(help="Split whose rows are scored.")] = "test",
        rows: Annotated[
            int, typer.Option(min=2, help="Rows of it, drawn at random; all, if it has fewer.")
        ] = 100_000,
        features: Annotated[
            str | None,
            typer.Option(metavar="A,B+C", help="Only these; those joined by + are permuted together."),
        ] = None,
        repeats: Annotated[
            int, typer.Option(min=1, help="Permutations of each, whose losses are averaged.")
        ] = 1,
        by: Annotated[
            str, typer.Option(metavar="A,B", help="Features by whose values the weights are shown, too.")
        ] = "",
        out: Annotated[
            Path | None, typer.Option(help="Folder of plots and explain.json; default: RUN/explain.")
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Seed of rows, permutations and intervals.")] = 1,
        nproc: Annotated[int, typer.Option("--nproc", min=1, help="Processes; the same result.")] = 1,
    ) -> None:
        """Which features matter, and which component of an ensemble decided.

        A feature's values are permuted among the rows, and the model scores them
        again: what NE it loses is what the feature is worth to it, with all that
        others tell of it, too. Sequences of one behavior stay aligned: they are
        permuted together, each row's lists as a whole.

        Of components fused by confidence: their mean weights, the share of rows
        that each decides (has the largest weight), and all NEs there.
        """
        from cetnet.trainer.check_settings import check_scored
        from cetnet.trainer.explain.sample import permuted_together
        from cetnet.trainer.files import check_writable

        wanted, slices = _names(features), _names(by) or ()
        folder = out or run / "explain"
        dataset = check_scored(run, data, split)
        permuted_together(dataset.schema, wanted)
        known = [feature.name for feature in dataset.schema.features]
        if unknown := next((name for name in slices if name not in known), None):
            raise UserError(f"--by: no feature {unknown!r}; there are {', '.join(known)}")
        for name in ("importance.png", "decided.png", "explain.json"):
            check_writable(folder / name)
        if nproc > 1 and "RANK" not in os.environ:
            asked = {
                "split": split,
                "rows": rows,
                "features": features,
                "repeats": repeats,
                "by": by,
                "out": out,
            }
            given = [
                f"--{key}={value}"
                for key, value in (asked | {"seed": seed}).items()
                if value not in (None, "")
            ]
            launch(["explain", str(run), str(data), *given], nproc, partial(_check_trained, run))
        check_loading()
        from cetnet.trainer.explain.explain import Question
        from cetnet.trainer.explain.explain import explain as ask
        from cetnet.trainer.explain.report import print_explanation, write_explanation

        question = Question(rows, wanted, repeats, slices, seed)
        found = ask(run, dataset, question)
        if found is None:
            return
        print_explanation(found, f"{run} on {found.rows:,} rows of {split} of {data}")
        asked = {"run": str(run), "data": str(data), "split": split, **question._asdict()}
        for path in write_explanation(found, asked, folder):
            typer.echo(f"{path}: written")


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(text.split(",")) if text else None


def _check_trained(run: Path) -> None:
    from cetnet.trainer.evaluate import load_trained

    load_trained(run)
