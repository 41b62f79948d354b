"""What must agree over all rows of a dataset, whichever chunks and files they are in; by the facts of `type_rows`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.typed import GROUP, Chunk
from cetnet.trainer.prepare.engine.values import forms
from cetnet.trainer.prepare.engine.vectors import open_vectors

Facts = Mapping[str, Any]


def check_labels(
    spec: RawSchema, chunks: Sequence[Chunk], facts: Sequence[Facts], files: Sequence[Path]
) -> None:
    """UserError if some label is -1 and another is 0: either could be a row without a label."""
    start: dict[int, int] = {}  # of each file, rows before it
    found: dict[str, str] = {}
    for chunk, fact in zip(chunks, facts, strict=True):
        before = chunk.first_row - start.setdefault(chunk.file, chunk.first_row)
        for label, row in fact["labels"].items():
            if row is not None:
                found.setdefault(label, f"{label} in {files[chunk.file]}, row {before + row + 1}")
    if len(found) == 2:
        raise UserError(
            f"column {spec.label!r} has both {found['-1']}, and {found['0']}: give 0 and 1, or -1 and 1, and leave "
            "out rows without a label"
        )


def check_groups(
    spec: RawSchema, chunks: Sequence[Chunk], facts: Sequence[Facts], files: Sequence[Path]
) -> None:
    """UserError for the first row without a group."""
    start: dict[int, int] = {}  # of each file, rows before it
    for chunk, fact in zip(chunks, facts, strict=True):
        before = chunk.first_row - start.setdefault(chunk.file, chunk.first_row)
        if (row := fact["without_group"]["first"]) is not None:
            raise UserError(
                f"{files[chunk.file]}: column {spec.group!r}, row {before + row + 1}: expected a value, found nothing"
            )


def check_forms(
    spec: RawSchema,
    chunks: Sequence[Chunk],
    facts: Sequence[Facts],
    files: Sequence[Path],
    trained: Mapping[str, Mapping[str, str]],
) -> None:
    """UserError if ids of a table are written both as 17 and as 17.0, or as 1.7e+18.

    Unless `whole_floats` says what is meant; the keys of given vectors are never read as other ones. `trained` are
    the `forms` that a model's tables know.
    """
    of_keys = {table: (path, forms(open_vectors(path).keys)) for table, path in spec.pretrained.items()}
    if spec.whole_floats == "integer":
        for path, of_path in of_keys.values():
            if whole := of_path.get("whole"):
                raise UserError(f"{path}: keys are written as {whole!r}: write them as integers")
    if spec.whole_floats != "refuse":
        return
    found = _forms_of_rows(chunks, facts, files)
    for table, of_table in trained.items():
        _check_trained(table, of_table, found.get(table, {}))
    for table, (path, of_path) in of_keys.items():
        for form, example in of_path.items():
            found.setdefault(table, {}).setdefault(form, (example, f"the keys of {path}"))
    for table, examples in found.items():
        what = "groups" if table == GROUP else f"ids of table {table!r}"
        if "lossy" in examples:
            lossy, here = examples["lossy"]
            raise UserError(
                f"{what} are written as {lossy!r} in {here}, without their last digits: write them as integers or "
                "text, or set `whole_floats: text` in the schema if these are names"
            )
        if "integer" in examples and "whole" in examples:
            (integer, there), (whole, here) = examples["integer"], examples["whole"]
            raise UserError(
                f"{what} are written as {whole!r} in {here}, and as {integer!r} in {there}: set `whole_floats` in "
                "the schema to `integer`, which reads 17.0 as 17, or to `text` if these are different"
            )


def _forms_of_rows(
    chunks: Sequence[Chunk], facts: Sequence[Facts], files: Sequence[Path]
) -> dict[str, dict[str, tuple[str, str]]]:
    """Of each table, an example of each form and where it is."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for chunk, fact in zip(chunks, facts, strict=True):
        for table, of_columns in fact["forms"].items():
            for column, examples in of_columns.items():
                for form, example in examples.items():
                    where = f"column {column!r} of {files[chunk.file]}"
                    found.setdefault(table, {}).setdefault(form, (example, where))
    return found


def _check_trained(table: str, before: Mapping[str, str], now: Mapping[str, tuple[str, str]]) -> None:
    """Ids in another form than a model knows would all be unknown to it."""
    for form, other in (("whole", "integer"), ("integer", "whole"), ("lossy", "integer")):
        if form in now and form not in before and other in before:
            example, where = now[form]
            raise UserError(
                f"ids of table {table!r} are written as {example!r} in {where}, and as {before[other]!r} in the rows "
                "that the model was trained on, which doesn't know the former: write them as there"
            )
