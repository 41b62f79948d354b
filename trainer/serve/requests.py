"""Requests of the protocol, over HTTP and gRPC, as raw rows; and scores as its responses."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cetnet.trainer.serve.tensors import (
    BadRequest,
    Limits,
    Tensor,
    column,
    from_bytes,
    from_json,
    from_values,
    longest_list,
    num_missing,
    shown,
    strict_json,
    tensor,
)
from cetnet.trainer.serve.version import Version

if TYPE_CHECKING:
    from kserve.protocol.grpc.grpc_predict_v2_pb2 import InferTensorContents, ModelInferRequest

HEADER_LENGTH = "inference-header-content-length"
"""Of bodies with binary data: how many bytes the JSON in front of it has."""

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class Output:
    """An output that is sent back: its number among the model's, and whether as binary data."""

    number: int
    binary: bool = False


@dataclass(frozen=True)
class Request:
    """Rows to score.

    Attributes:
        version: whose columns they have, and which scores them.
        table: the raw columns that the version asks for.
        missing: of each raw column, in how many rows it has no value.
        longest: values in its longest list.
        outputs: what is sent back, in this order.
        id: the client's name for it; "" if it has none.
    """

    version: Version
    table: pa.Table
    missing: dict[str, int]
    longest: int
    outputs: tuple[Output, ...]
    id: str = ""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.table.num_rows


def from_http(body: bytes, header_length: str | None, version: Version, limits: Limits) -> Request:
    """The request in a body: JSON and, where `header_length` says how long that is, binary data behind it.

    Raises:
        BadRequest: it isn't a request that this version can score.
    """
    length = len(body)
    if header_length is not None:
        if not re.fullmatch(r"[0-9]{1,18}", header_length) or int(header_length) > len(body):
            raise BadRequest(
                f"{HEADER_LENGTH}: {shown(header_length)}; a number up to {len(body)} is expected"
            )
        length = int(header_length)
    content = _object(strict_json(body[:length]), "the request")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise BadRequest("inputs: an array of the columns' tensors is expected")
    columns: dict[str, tuple[Tensor, pa.Array]] = {}
    at = length
    for each in inputs:
        given = _object(each, "an input")
        about = tensor(given.get("name"), given.get("datatype"), given.get("shape"), limits)
        size = _parameters(given, shown(about.name)).get("binary_data_size")
        if (size is None) == ("data" not in given):
            raise BadRequest(f"{shown(about.name)}: data is expected, or else binary_data_size")
        if size is None:
            values = from_json(about, given["data"])
        else:
            if type(size) is not int or not 0 <= size <= len(body) - at:
                raise BadRequest(
                    f"{shown(about.name)}: binary_data_size {shown(size)}; {len(body) - at} bytes are left"
                )
            values = from_bytes(about, body[at : at + size])
            at += size
        _add(columns, about, values)
    if at != len(body):
        raise BadRequest(f"{len(body) - at} bytes at the end belong to no input")
    id = content.get("id", "")
    if not isinstance(id, str):
        raise BadRequest(f"id: {shown(id)}; text is expected")
    return _request(columns, version, _http_outputs(content, version), id, limits)


def from_grpc(message: "ModelInferRequest", version: Version, limits: Limits) -> Request:
    """The request in a message, of raw or of typed contents.

    Raises:
        BadRequest: it isn't a request that this version can score.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise BadRequest(f"{len(message.inputs)} inputs, {len(raw)} raw contents; send one of each input")
    columns: dict[str, tuple[Tensor, pa.Array]] = {}
    for number, given in enumerate(message.inputs):
        about = tensor(given.name, given.datatype, list(given.shape), limits)
        if raw and given.HasField("contents"):
            raise BadRequest(f"{shown(about.name)}: contents and raw contents; send one of them")
        values = from_bytes(about, raw[number]) if raw else _typed(about, given.contents)
        _add(columns, about, values)
    names = [each.name for each in message.outputs]
    outputs = _outputs(names, version, [bool(raw)] * len(names), bool(raw))
    return _request(columns, version, outputs, message.id, limits)


def _typed(about: Tensor, contents: "InferTensorContents") -> pa.Array:
    field = _CONTENTS.get(about.datatype)
    if field is None:
        raise BadRequest(f"{shown(about.name)}: {about.datatype} has no typed contents; send raw ones")
    values = list(getattr(contents, field))
    if len(values) != about.count:
        raise BadRequest(f"{shown(about.name)}: {len(values)} {field}; its shape says {about.count}")
    return from_values(about, values)


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{what} is {shown(value)}; an object is expected")
    return value


def _parameters(holder: Mapping[str, Any], whose: str) -> dict[str, Any]:
    return _object(holder.get("parameters") or {}, f"parameters of {whose}")


def _add(columns: dict[str, tuple[Tensor, pa.Array]], about: Tensor, values: pa.Array) -> None:
    if about.name in columns:
        raise BadRequest(f"{shown(about.name)} comes twice; send each column once")
    columns[about.name] = about, values


def _http_outputs(content: Mapping[str, Any], version: Version) -> tuple[Output, ...]:
    asked = content.get("outputs") or []
    if not isinstance(asked, list):
        raise BadRequest("outputs: an array is expected")
    default = _parameters(content, "the request").get("binary_data_output", False)
    names, binary = [], []
    for each in asked:
        given = _object(each, "an output")
        names.append(given.get("name"))
        binary.append(_parameters(given, "an output").get("binary_data", default))
    if any(type(each) is not bool for each in [default, *binary]):
        raise BadRequest("binary_data and binary_data_output: true or false is expected")
    return _outputs(names, version, binary, default)


def _outputs(
    names: Sequence[object], version: Version, binary: Sequence[bool], default: bool
) -> tuple[Output, ...]:
    """The outputs of these names; all if none is named."""
    for name in names:
        if name not in version.outputs:
            raise BadRequest(f"output {shown(name)} is none of {', '.join(version.outputs)}")
    if len(set(names)) != len(names):
        raise BadRequest("an output comes twice; name each once")
    if not names:
        return tuple(Output(number, default) for number in range(len(version.outputs)))
    return tuple(
        Output(version.outputs.index(str(name)), each) for name, each in zip(names, binary, strict=True)
    )


def _request(
    columns: Mapping[str, tuple[Tensor, pa.Array]],
    version: Version,
    outputs: tuple[Output, ...],
    id: str,
    limits: Limits,
) -> Request:
    absent = [name for name in version.columns if name not in columns]
    if absent:
        more = f" and {len(absent) - 5} more" * (len(absent) > 5)
        raise BadRequest(
            f"no column {', '.join(map(shown, absent[:5]))}{more}; send a tensor of it, null where it is missing"
        )
    rows = {about.rows for about, _ in columns.values()}
    if len(rows) > 1:
        lines = ", ".join(f"{shown(name)} {about.rows}" for name, (about, _) in list(columns.items())[:5])
        raise BadRequest(f"columns of different numbers of rows: {lines}")
    arrays = {
        name: column(*columns[name], is_list, version.separator, limits)
        for name, is_list in version.columns.items()
    }
    missing = {name: num_missing(array) for name, array in arrays.items()}
    lists = [arrays[name] for name, is_list in version.columns.items() if is_list]
    longest = max((longest_list(each, version.separator) for each in lists), default=0)
    return Request(version, pa.table(arrays), missing, longest, outputs, id)


def http_response(request: Request, name: str, scores: NDArray[np.float32]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer.

    Args:
        request: what was asked.
        name: of the model.
        scores: `[outputs, rows]`, of all outputs.
    """
    outputs, tail = [], b""
    for output in request.outputs:
        values = scores[output.number]
        described = _described(request, output)
        if output.binary:
            data = values.astype("<f4").tobytes()
            described["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            described["data"] = values.tolist()
        outputs.append(described)
    content = {"model_name": name, "model_version": request.version.name, "outputs": outputs}
    if request.id:
        content["id"] = request.id
    head = json.dumps(content).encode()
    if not tail:
        return head, {"content-type": "application/json"}
    return head + tail, {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def grpc_response(request: Request, name: str, scores: NDArray[np.float32]) -> dict[str, Any]:
    """Fields of the ModelInferResponse; `scores` as in `http_response`."""
    outputs, raw = [], []
    for output in request.outputs:
        values = scores[output.number]
        described = _described(request, output)
        if output.binary:
            raw.append(values.astype("<f4").tobytes())
        else:
            described["contents"] = {"fp32_contents": values.tolist()}
        outputs.append(described)
    return {
        "model_name": name,
        "model_version": request.version.name,
        "id": request.id,
        "outputs": outputs,
        "raw_output_contents": raw,
    }


def _described(request: Request, output: Output) -> dict[str, Any]:
    name = request.version.outputs[output.number]
    return {"name": name, "datatype": "FP32", "shape": [request.rows]}
