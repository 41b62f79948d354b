"""Columns of scored files that the model doesn't read: passed through, or sliced by."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cetnet.trainer.data.arrow_types import value_type
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.parquet_files import RowGroup
from cetnet.trainer.errors import UserError
from cetnet.trainer.run_folder import load_run


def check_given(dataset: Dataset, names: Sequence[str], option: str) -> None:
    """Raise UserError for a column that a file lacks, or that differs too much between files.

    Args:
        dataset: what is scored.
        names: of its files' columns.
        option: that names them, for the message.
    """
    for name in names:
        given_type(dataset, name, option)


def check_kept(run: Path, dataset: Dataset | None, names: Sequence[str]) -> dict[str, pa.DataType]:
    """The types of columns to be passed through into the predictions of a run, as far as a dataset tells.

    Raises UserError for one that a file lacks, or that has a name of the predictions' own.
    """
    config, _ = load_run(run, resolve=False)
    own = {"row", "label", "weight", "group", "true_probability", *config.model.outputs}
    if clash := next((name for name in names if name in own), None):
        raise UserError(
            f"--keep {clash}: predictions have a column {clash!r} of their own; rename it in the files"
        )
    return {} if dataset is None else {name: given_type(dataset, name, "--keep") for name in names}


def given_type(dataset: Dataset, name: str, option: str) -> pa.DataType:
    """The one type that values of a column have in the output: the files' own, or one that holds those of all.

    Raises UserError if there is none.
    """
    found: pa.DataType | None = None
    for file, kind in dataset.given_types(name).items():
        if kind is None:
            raise UserError(f"{option} {name}: {file} has no column {name!r}, or several; leave it out")
        kind = _plain_type(kind)
        if found is None or pa.types.is_null(found):
            found = kind
        elif found != kind:
            fields = [pa.schema([("value", each)]) for each in (found, kind)]
            try:
                found = pa.unify_schemas(fields, promote_options="permissive").field(0).type
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                raise UserError(
                    f"{option} {name}: the column is {kind} in {file}, and {found} in others; write all files alike"
                ) from None
    assert found is not None
    return found


def kept_columns(dataset: Dataset, group: RowGroup, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Columns of a row group with these types; raises UserError for a value that one can't hold."""
    table = dataset.given(group, list(types))
    columns = {}
    for name, kind in types.items():
        try:
            columns[name] = pa.chunked_array(
                [plain_values(chunk).cast(kind) for chunk in table[name].chunks], kind
            )
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{group}: column {name!r} holds what {kind} of other files can't ({error})"
            ) from None
    return pa.table(columns)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    kind = value_type(kind)
    return pa.large_string() if pa.types.is_string_view(kind) else kind


def plain_values(array: pa.Array) -> pa.Array:
    """Without what encodes the values."""
    if isinstance(array.type, pa.BaseExtensionType):
        return plain_values(array.storage)
    if pa.types.is_run_end_encoded(array.type):
        return plain_values(pc.run_end_decode(array))
    if pa.types.is_dictionary(array.type):
        return plain_values(array.dictionary_decode())
    return array.cast(_plain_type(array.type))
