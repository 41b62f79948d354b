"""`cetnet export`: a run's model as a folder that scores raw rows without this package."""

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cetnet.models.batch import Batch
from cetnet.models.cetnet import CETNet, Member
from cetnet.models.schema import Schema
from cetnet.models.served import batch_of
from cetnet.sharding.plan_table import human_bytes
from cetnet.trainer.checkpoint.checkpoints import latest_checkpoint, read_trainer_state
from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.checkpoint.store import checkpoint_place, open_store
from cetnet.trainer.checkpoint.trainer_state import check_own_meaning
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import console, output
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.dataset_files import VOCABULARIES
from cetnet.trainer.encoder.encode import Encoder
from cetnet.trainer.errors import UserError
from cetnet.trainer.export.about import describe, digests
from cetnet.trainer.export.examples import draw_examples
from cetnet.trainer.export.model import Loaded, export_program, load_model
from cetnet.trainer.export.place import ABOUT, written_aside
from cetnet.trainer.export.quality import ALLOWED, Quality, measure_both
from cetnet.trainer.export.quantize import Stored, store_tables, table_bytes, table_numbers
from cetnet.trainer.export.request import request_of
from cetnet.trainer.export.targets import FILES, Target
from cetnet.trainer.export.verify import TOLERANCE, WHY, verify_export
from cetnet.trainer.files import without_nonfinite, write_json
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding
from cetnet.trainer.prepare.raw_split import check_encoding, load_vocabulary
from cetnet.trainer.run_folder import load_run

_PACKAGE = Path(__file__).parent
_PROGRAM_BYTES = 1 << 24  # of programs without their weights, together


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        run: folder of the run.
        checkpoint: `newest`, `best`, or a step.
        stored: how tables are stored.
        targets: forms of the model; `model.pt2` is always there.
        dataset: whose NE is compared if tables are stored in less than float32; or why it isn't.
    """

    run: Path
    checkpoint: str
    stored: Stored
    targets: Sequence[Target]
    dataset: Dataset | str | None


def export_run(wanted: Wanted, out: Path) -> None:
    """Write an export: aside, verified in a clean process, then under its name.

    Memory: the tables once, and half again or less if they are stored otherwise.

    Raises:
        UserError: the run has no such checkpoint, or it is damaged; its model can't be exported, or the export isn't
            the model.
    """
    config, schema = load_run(wanted.run)
    checkpoint = find_checkpoint(wanted.run, config, wanted.checkpoint)
    state = read_trainer_state(checkpoint)
    check_own_meaning(wanted.run, schema, state)
    console.print(f"{wanted.run}: exporting {checkpoint.name}")
    with written_aside(out) as folder:
        request = _write_encoder(folder, wanted.run, schema, config)
        loaded = load_model(config, schema, checkpoint)
        about = describe(wanted.run, config, schema, state, checkpoint.name)
        about |= _write_model(folder, wanted, loaded, schema, request, config)
        quality = about.pop("quality")
        del loaded
        gc.collect()  # the clean process needs the memory
        write_json(folder / ABOUT, about | {"sha256": digests(folder)})
        found = {target: verify_export(folder, target) for target in wanted.targets}
        write_json(folder / ABOUT, {**about, "largest_difference": found, "sha256": digests(folder)})
    _report(out, wanted, about, found, quality)


def find_checkpoint(run: Path, config: RunConfig, name: str) -> Place:
    """A checkpoint of a run: `newest`, `best` or a step; raises UserError if there is none."""
    place = checkpoint_place(run, config.checkpoint.path)
    if name == "newest":
        newest = latest_checkpoint(place)
        if newest is None:
            raise UserError(f"{run}: no checkpoint yet; train it with `cetnet train`, on with --resume")
        return newest
    store = open_store(place)
    steps = {int(path.name.removeprefix("step-").partition(".")[0]): path for path in store.steps()}
    if name == "best":
        best = store.best()
        if not (best / "trainer.json").exists():
            raise UserError(
                f"{run}: no best checkpoint, which evaluation.early_stopping keeps; export --checkpoint newest, "
                f"or one of its steps: {', '.join(map(str, steps)) or 'none'}"
            )
        return best
    if int(name) not in steps:
        raise UserError(
            f"{run}: no checkpoint of step {name}; there are {', '.join(map(str, steps)) or 'none'} (checkpoint.keep "
            "says how many are kept)"
        )
    return steps[int(name)]


def _write_encoder(folder: Path, run: Path, schema: Schema, config: RunConfig) -> dict[str, Any]:
    """Write all that makes inputs of raw rows; returns what `request.json` says."""
    encoding = RawEncoding.load(run)
    if encoding is None and schema.encoding is not None:
        raise UserError(
            f"{run}: no encoding.yaml, so nothing says what raw values are to the model; copy it and {VOCABULARIES}/ "
            f"from the run's dataset ({config.data.path})"
        )
    if encoding is not None:
        check_encoding(run, encoding, schema)
    request = request_of(schema, encoding, config.model.outputs)
    needed = {column["file"]: column["table"] for column in request["columns"] if "file" in column}
    for name, table in sorted(needed.items()):
        if not (run / name).is_file():
            raise UserError(f"{run / name} is missing; copy it from the run's dataset ({config.data.path})")
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(run / name, folder / name)
        load_vocabulary(run / name, (schema.vocabularies or {}).get(table, ""))
    write_json(folder / "request.json", request)
    shutil.copytree(
        _PACKAGE.parent / "encoder", folder / "encoder", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    shutil.copyfile(_PACKAGE / "predict.py", folder / "predict.py")
    return request


def _write_model(
    folder: Path, wanted: Wanted, loaded: Loaded, schema: Schema, request: dict[str, Any], config: RunConfig
) -> dict[str, Any]:
    """Write examples and models; returns what is to be said of them."""
    model, served = loaded
    examples = draw_examples(request, folder)
    inputs = {name: torch.from_numpy(array) for name, array in Encoder(folder).encode(examples).items()}
    expected = probabilities(model, schema, inputs)
    about: dict[str, Any] = {}
    if config.training.precision == "bf16":
        of_training = probabilities(model, schema, inputs, bf16=True)
        about["difference_to_bf16"] = float((of_training - expected).abs().max())
    with torch.no_grad():
        difference = float((served(**inputs) - expected).abs().max())
    if not difference <= TOLERANCE:  # compared now, as tables stored otherwise differ by more
        raise UserError(
            f"the served model's probabilities differ from the trained model's by {difference:.1e}{WHY}"
        )
    quality: Quality | str | None = None
    if isinstance(wanted.dataset, Dataset):
        quality = measure_both(served, wanted.dataset, wanted.stored, config)
    else:
        store_tables(served, wanted.stored)
        quality = wanted.dataset
    if wanted.stored != "float32":
        with torch.no_grad():
            of_stored = served(**inputs)
        about["difference_to_float32"] = float((of_stored - expected).abs().max())
        expected = of_stored
    columns = dict(zip((f"expected/{name}" for name in served.outputs), expected.numpy(), strict=True))
    for name, column in columns.items():
        examples = examples.append_column(name, pa.array(column))
    pq.write_table(examples, folder / "examples.parquet")
    program = export_program(served, schema)
    _check_room(folder, sum(tensor.nbytes for tensor in program.state_dict.values()) * len(wanted.targets))
    torch.export.save(program, folder / FILES["pt2"])
    if "aoti" in wanted.targets:
        from cetnet.trainer.export.aoti import compile_aoti

        console.print("compiling, which takes a minute or two")
        about["cpu_flags"] = compile_aoti(program, folder / FILES["aoti"])
        shutil.copytree(_PACKAGE / "cpp", folder / "cpp")
    if "onnx" in wanted.targets:
        from cetnet.trainer.export.onnx import to_onnx

        to_onnx(program, folder / FILES["onnx"])
    about |= {"tables": wanted.stored, "table_bytes": table_bytes(served)}
    about["table_bytes_float32"] = 4 * table_numbers(served)
    if isinstance(quality, Quality):
        about["compared"] = without_nonfinite(quality._asdict())
    return about | {"quality": quality}


def _check_room(folder: Path, size: int) -> None:
    """Raise UserError unless the disk has room for models of so many bytes: torch aborts where it becomes full."""
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < size + _PROGRAM_BYTES:
        raise UserError(
            f"{folder.parent}: the export takes {human_bytes(size + _PROGRAM_BYTES)} and the disk has "
            f"{human_bytes(disk.free)} left; make room, or choose another --out"
        )


def probabilities(model: CETNet, schema: Schema, inputs: dict[str, Tensor], bf16: bool = False) -> Tensor:
    """What the trained model gives for encoded rows, by TorchRec's own lookups: `[outputs, B]`."""
    sparse, dense = batch_of(schema, inputs)
    rows = len(dense)
    batch = Batch(sparse, dense, torch.zeros(rows), torch.ones(rows), torch.arange(rows))
    members = [member for member in model.towers.values() if isinstance(member, Member)]
    with torch.no_grad():
        for member in members:
            member.bf16 = bf16
        try:
            return model(batch)[1].logits.sigmoid()
        finally:
            for member in members:
                member.bf16 = False


def _report(
    out: Path,
    wanted: Wanted,
    about: dict[str, Any],
    found: dict[Target, float],
    quality: Quality | str | None,
) -> None:
    output.print(
        f"{out}: step {about['step']} of {wanted.run}, tables in {wanted.stored} "
        f"({human_bytes(about['table_bytes'])})"
    )
    for target, difference in found.items():
        size = (out / FILES[target]).stat().st_size
        output.print(
            f"  {FILES[target]}: {human_bytes(size)}; in a process of its own within {difference:.1e} of the trained "
            f"model's probabilities of the examples{'' if wanted.stored == 'float32' else ', its tables so stored'}"
        )
    if isinstance(quality, str):
        console.print(f"NE of {wanted.stored} tables isn't compared with float32's: {quality}")
    if isinstance(quality, Quality):
        output.print(quality.line(wanted.stored, about["table_bytes"], about["table_bytes_float32"]))
        if quality.worse > ALLOWED:
            console.print(
                f"warning: {wanted.stored} costs more than {ALLOWED} % of the NE; export with --fp16, or neither",
                style="bold red",
            )
    if "difference_to_bf16" in about:
        output.print(
            f"  trained in bfloat16, served in float32: within {about['difference_to_bf16']:.1e} of its probabilities"
        )
