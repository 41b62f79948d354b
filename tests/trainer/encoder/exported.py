"""The part of an export that turns raw rows into inputs: request.json and vocabularies."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cetnet.models.schema import Schema
from cetnet.trainer.encoder.vocabulary import COLUMNS
from cetnet.trainer.export.request import request_of
from cetnet.trainer.prepare.engine.raw import RawSchema
from cetnet.trainer.prepare.engine.raw_encoding import RawEncoding


def write_request(
    folder: Path,
    encoding: RawEncoding,
    values: Mapping[str, Sequence[str]],
    outputs: Sequence[str] = ("fused",),
) -> Schema:
    """Write `request.json`, and the vocabularies of which these are the values, seen 1, 2, 3, ... times."""
    schema = encoding.raw.prepared({table: len(of) + 1 for table, of in values.items()})
    (folder / "vocabularies").mkdir(parents=True, exist_ok=True)
    for table, of_table in values.items():
        numbers = range(1, len(of_table) + 1)
        vocabulary = pa.table({"value": of_table, "id": numbers, "count": numbers}, COLUMNS)
        pq.write_table(vocabulary, folder / f"vocabularies/{table}.parquet")
    request = request_of(schema, encoding, outputs)
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    return schema


def encoding_of(features: Sequence[Mapping[str, object]], **others: object) -> RawEncoding:
    """Of a raw schema with these features, whose label is `y`; `moments`, `lowest` and `forms` are the encoding's."""
    own = {key: others.pop(key) for key in ("moments", "lowest", "forms") if key in others}
    raw = RawSchema.model_validate({"label": "y", "features": features} | others)
    return RawEncoding.model_validate({"raw": raw} | own)
