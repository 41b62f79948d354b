"""`request.json`: what an exported model is asked with, for those who call it and for the encoder."""

import math
from collections.abc import Sequence
from typing import Any

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.encoder.encode import FORMAT
from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine.raw import RawFeature
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding

_ABOUT = (
    "Each of `columns` is a column of raw rows, as they are logged. encoder/encode.py turns rows into `inputs`, the "
    "arguments of the model, in this order; the model gives a tensor of probabilities, float32 [outputs, rows]."
)


def request_of(schema: Schema, encoding: RawEncoding | None, outputs: Sequence[str]) -> dict[str, Any]:
    """What `request.json` says.

    Args:
        schema: of the dataset that the model was trained on.
        encoding: how its raw rows became ids and numbers; None if its files are read as they are.
        outputs: of the model, in its order.
    """
    if schema.managed_collision:
        raise UserError(
            f"table {schema.managed_collision[0]!r} has managed collision: its rows are given out as ids come, so "
            "that no file says which id has which; train with `hashed` instead to export"
        )
    raw = {feature.name: feature for feature in encoding.raw.features} if encoding else {}
    columns = [_column(feature, schema, raw.get(feature.name), encoding) for feature in schema.features]
    request = {
        "format": FORMAT,
        "about": _ABOUT,
        "columns": columns,
        "null_values": list(encoding.raw.null_values) if encoding else [],
        "separator": encoding.raw.separator if encoding else "|",
        "whole_floats": encoding.raw.whole_floats if encoding else "refuse",
        "inputs": _inputs(schema),
        "outputs": list(outputs),
    }
    if encoding and encoding.transform:
        request["rows_from"] = f"{encoding.transform} of the public dataset's rows: its columns, not theirs"
    return request


def _column(
    feature: Feature, schema: Schema, raw: RawFeature | None, encoding: RawEncoding | None
) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "column": raw.raw if raw else feature.name,
        "feature": feature.name,
        "kind": feature.kind,
    }
    if feature.kind == "dense":
        return entry | _dense(feature, raw, encoding)
    table = str(feature.table)
    ids = _ids(table, schema, raw, encoding)
    entry |= {
        "takes": "integer" if ids == "ids" else "text",
        "missing": 0,
        "table": table,
        "rows": schema.tables[table],
        "ids": ids,
    }
    if ids == "vocabulary":
        entry["file"] = f"vocabularies/{table}.parquet"
    if ids == "hash_text" and encoding and (forms := encoding.forms.get(table)):
        entry["forms"] = list(forms)
    if feature.max_length is not None:
        entry |= {"max_length": feature.max_length, "keep": raw.keep if raw else "recent"}
    return entry


def _ids(table: str, schema: Schema, raw: RawFeature | None, encoding: RawEncoding | None) -> str:
    """How values become ids: `vocabulary`, `hash_text`, `hash_hex` or, if they are ids already, `ids`."""
    if encoding is None or raw is None:
        return "hash_text" if table in (schema.hashed or ()) else "ids"
    if raw.hash is not None:
        return f"hash_{raw.hash_function}"
    return "ids" if encoding.raw.tables.get(table) is not None else "vocabulary"


def _dense(feature: Feature, raw: RawFeature | None, encoding: RawEncoding | None) -> dict[str, Any]:
    transform = raw.transform if raw else "none"
    entry: dict[str, Any] = {"takes": "number", "missing": 0.0, "transform": transform}
    if encoding and transform == "standardize":
        mean, deviation = encoding.moments[feature.name]
        entry |= {"mean": mean, "deviation": deviation}
    if encoding and transform == "log_from_lowest":
        lowest = float(encoding.lowest or 0.0)
        entry |= {"lowest": lowest, "missing": math.log(max(0.0, lowest) - lowest + 2)}
    return entry


def _inputs(schema: Schema) -> list[dict[str, Any]]:
    """The model's arguments: those of which the schema has features."""
    longest = "longest list in the batch, at least 1"
    kinds = {
        "dense": (schema.dense_features, []),
        "categorical": (schema.of_kind("categorical"), []),
        "multi_valued": (schema.of_kind("multi_valued"), [longest]),
        "sequences": (schema.of_kind("sequence"), [longest]),
    }
    return [
        {
            "name": name,
            "dtype": "float32" if name == "dense" else "int64",
            "shape": ["rows", len(features), *sizes],
            "features": [feature.name for feature in features],
            **({"padding": "-1 behind the last value; sequences are oldest first"} if sizes else {}),
        }
        for name, (features, sizes) in kinds.items()
        if features
    ]
