"""`cetnet explain`: what is asked on the command line, checked before torch is loaded."""

from pathlib import Path
from typing import Annotated

import typer

from cetnet.trainer.errors import UserError
from cetnet.trainer.score_commands import Data, Launch, NumProcesses, Run, Split, column_names, scored_rows
from cetnet.trainer.versions import check_loading


def add_explain(app: typer.Typer, launch: Launch) -> None:
    """Give an app the command; `launch` runs a command line in so many processes, after a check, and exits."""

    @app.command()
    def explain(
        run: Run,
        data: Data,
        split: Split = None,
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
            str | None,
            typer.Option(metavar="A,B", help="Features by whose values the weights are shown, too."),
        ] = None,
        out: Annotated[
            Path | None, typer.Option(help="Folder of plots and explain.json; default: RUN/explain.")
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Seed of rows, permutations and intervals.")] = 1,
        nproc: NumProcesses = 1,
    ) -> None:
        """Which features matter, and which component of an ensemble decided.

        A feature's values are permuted among the rows, and the model scores them
        again: what NE it loses is what the feature is worth to it, with all that
        others tell of it, too. Sequences of one behavior stay aligned: they are
        permuted together, each row's lists as a whole.

        Of components fused by confidence: their mean weights, the share of rows
        that each decides (has the largest weight), and all NEs there.
        """
        from cetnet.trainer.explain.sample import permuted_together
        from cetnet.trainer.files import check_writable
        from cetnet.trainer.run_folder import load_run

        wanted, slices = column_names(features, "--features"), column_names(by, "--by")
        schema = load_run(run, resolve=False)[1]
        permuted_together(schema, wanted)
        known = [feature.name for feature in schema.features]
        if unknown := next((name for name in slices if name not in known), None):
            raise UserError(f"--by: no feature {unknown!r}; there are {', '.join(known)}")
        folder = out or run / "explain"
        for name in ("importance.png", "decided.png", "explain.json"):
            check_writable(folder / name)
        with scored_rows(run, data, split, (), nproc, labelled=True) as opened:
            if opened.launches:
                options = [f"--rows={rows}", f"--repeats={repeats}", f"--seed={seed}"]
                given = {"split": opened.split, "features": features, "by": by, "out": out}
                options += [f"--{name}={value}" for name, value in given.items() if value is not None]
                launch(["explain", str(run), str(opened.path), *options], nproc, opened.before)
            check_loading()
            from cetnet.trainer.explain.explain import Question
            from cetnet.trainer.explain.explain import explain as ask
            from cetnet.trainer.explain.report import print_explanation, write_explanation

            question = Question(rows, wanted, repeats, slices, seed)
            found = ask(run, opened.dataset, question)
            if found is None:
                return
            path, split = opened.dataset.path, opened.dataset.split
            print_explanation(found, f"{run} on {split} of {path}: {found.rows:,} rows")
            asked = {"run": str(run), "data": str(path), "split": split, **question._asdict()}
            for file in write_explanation(found, asked, folder):
                typer.echo(f"{file}: written")
