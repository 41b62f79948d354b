"""`cetnet export`: what is asked on the command line, checked before torch is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from cetnet.trainer.errors import UserError
from cetnet.trainer.versions import check_loading

if TYPE_CHECKING:
    from cetnet.trainer.data.dataset import Dataset


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it appears when all of it is verified.")],
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="newest|best|STEP",
            help="Which of the run's checkpoints; best: of the best evaluation, which early stopping keeps. "
            "result.json tells of the newest of a finished run.",
        ),
    ] = "newest",
    int8: Annotated[
        bool, typer.Option("--int8", help="Tables in int8 with a scale a row: a quarter of the bytes.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Tables in float16: half of the bytes.")] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="pt2|aoti|onnx",
            help="Forms of the model beside model.pt2, several by commas: aoti, compiled for CPUs, for Python "
            "and C++; onnx, for onnxruntime.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Dataset whose test split tells what --int8 or --fp16 costs; default: the run's."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the export at --out.")] = False,
) -> None:
    """Export a trained model: a folder that scores raw rows without this package.

    It holds model.pt2, which needs torch alone, the vocabularies, request.json
    with the columns of raw rows, 64 example rows with the probabilities they
    should get, and predict.py, which scores files of raw rows and says in 30
    lines how. A clean process scores the examples with it before the folder
    appears under its name. One process, no cluster, from any checkpoint: the
    tables must fit into this machine's memory.

    Example: cetnet export runs/clicks --out exports/clicks; then
    python exports/clicks/predict.py rows.parquet scores.parquet
    """
    from cetnet.trainer.export.place import check_place
    from cetnet.trainer.export.targets import Target, check_onnx, cpp_compiler
    from cetnet.trainer.run_folder import load_run

    if int8 and fp16:
        raise UserError("--int8 and --fp16 exclude each other")
    if checkpoint not in ("newest", "best") and not checkpoint.isdecimal():
        raise UserError(
            f"--checkpoint {checkpoint!r} is neither newest nor best nor a step, which is a number"
        )
    asked = [name.strip() for each in target or [] for name in each.split(",")]
    if unknown := [name for name in asked if name not in get_args(Target)]:
        raise UserError(f"--target {unknown[0]!r} is none of {', '.join(get_args(Target))}")
    config, schema = load_run(run, resolve=False)
    if schema.managed_collision:
        raise UserError(
            f"{run}: table {schema.managed_collision[0]!r} has managed collision, whose map from ids to rows "
            "TorchRec computes on a GPU only; train with `hashed` tables instead to export"
        )
    check_place(out, overwrite)
    if "aoti" in asked:
        cpp_compiler("the target aoti")
    if "onnx" in asked:
        check_onnx()
    stored: Literal["float32", "float16", "int8"] = "int8" if int8 else "float16" if fp16 else "float32"
    dataset = _compared(run, data, config.data.path) if stored != "float32" or data else None
    check_loading()
    from cetnet.trainer.export.export import Wanted, export_run

    targets = [name for name in get_args(Target) if name == "pt2" or name in asked]
    export_run(Wanted(run, checkpoint, stored, targets, dataset), out)


def _compared(run: Path, data: Path | None, of_run: Path) -> "Dataset | str":
    """The split whose NE is compared: that of the data named, or of the run's, or why not."""
    from cetnet.trainer.check_settings import check_scored

    if data is not None:
        return check_scored(run, data, "test")
    try:
        return check_scored(run, of_run, "test")
    except UserError as error:
        return f"{error}; name its dataset with --data"
