"""Right requests to a model server, made from an export's examples; and clients that send whatever they are given.

Clients are `http.client`, sockets and gRPC with the protocol's own messages; what is right is told by the export's
scorer, asked in this process.
"""

import http.client
import json
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages

from cetnet.trainer.export.scorer import Scorer

TOLERANCE = 1e-5  # a batch's size changes sums in their last digits
_SECONDS = 30.0  # without an answer: hung
_NUMBERS = {"INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}


@dataclass(frozen=True)
class Server:
    """Where a server is, and what it serves."""

    host: str
    port: int
    grpc_port: int
    name: str


@dataclass
class Tensor:
    """An input as it will be sent, whatever it is."""

    name: Any
    datatype: Any
    shape: Any
    data: Any


class Fuzzer:
    """Makes requests from an export's examples, and knows what is right.

    Args:
        export: its folder.
        scorer: of it; threads may share one.
        seed: of the requests.
    """

    def __init__(self, export: Path, scorer: Scorer, seed: int) -> None:
        self.random = Random(seed)
        self._scorer = scorer
        request = json.loads((export / "request.json").read_text(encoding="utf-8"))
        self._is_list = {
            entry["column"]: entry["kind"] in ("multi_valued", "sequence") for entry in request["columns"]
        }
        self._is_text = {entry["column"]: entry["takes"] == "text" for entry in request["columns"]}
        self._separator = request["separator"]
        with (export / "examples.parquet").open("rb") as file:
            examples = pq.read_table(file).select(list(self._is_list))
        self._rows = examples.to_pylist()

    def right(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """The probabilities `[outputs, rows]` of raw rows: text, a list of texts, or None."""
        columns = {}
        for name, is_list in self._is_list.items():
            kind = pa.list_(pa.large_string()) if is_list else pa.large_string()
            columns[name] = pa.array([row[name] for row in rows], kind)
        return np.stack(list(self._scorer.score(pa.table(columns)).values()))

    def rows(self) -> list[dict[str, Any]]:
        """Some raw rows, values as text: of the examples, a few of them changed."""
        chosen = []
        for _ in range(self.random.choice([1, 1, 2, 3, 8])):
            row = {name: _text(value) for name, value in self.random.choice(self._rows).items()}
            if self.random.random() < 0.3:
                name = self.random.choice(list(row))
                row[name] = self._changed(name, row[name])
            chosen.append(row)
        for name in (name for name, is_list in self._is_list.items() if is_list):
            if not self._can_be_text([row[name] or [] for row in chosen]):
                # As a tensor, in which missing values at the end are none.
                for row in chosen:
                    row[name] = _without_end(row[name] or [])
        return chosen

    def _can_be_text(self, lists: Sequence[list[str]]) -> bool:
        return all(each != [""] and not any(self._separator in value for value in each) for each in lists)

    def _changed(self, name: str, value: Any) -> Any:
        if isinstance(value, list) or self._is_list[name]:
            return [self._value(name) or "" for _ in range(self.random.choice([0, 1, 500]))]
        return self._value(name)

    def _value(self, name: str) -> str | None:
        """A value that the column can hold, but hardly has."""
        texts = ["unknown \u00e9\U0001f600", "17", "\x01'\"", str(2**64)]
        return self.random.choice(texts if self._is_text[name] else ["-1", "17", "2147483647", None])

    def tensors(self, rows: Sequence[dict[str, Any]]) -> list[Tensor]:
        """The rows as tensors, each column in one of the ways that the protocol has for it."""
        tensors = []
        for name, is_list in self._is_list.items():
            values = [row[name] for row in rows]
            if is_list:
                tensors.append(self._list_tensor(name, values))
            elif self.random.random() < 0.3 and all(
                value is not None and _is_number(value) for value in values
            ):
                tensors.append(Tensor(name, "FP64", [len(rows)], [float(value) for value in values]))
            else:
                shape = self.random.choice([[len(rows)], [len(rows), 1]])
                tensors.append(Tensor(name, "BYTES", shape, values))
        return tensors

    def _list_tensor(self, name: str, values: list[list[str] | None]) -> Tensor:
        lists = [value or [] for value in values]
        as_text = [self._separator.join(each) for each in lists]
        can_be_tensor = all(each == _without_end(each) for each in lists)
        if self._can_be_text(lists) and (self.random.random() < 0.5 or not can_be_tensor):
            return Tensor(name, "BYTES", [len(lists)], as_text)
        width = max(map(len, lists)) + self.random.choice([0, 1])
        flat = [value for each in lists for value in [*each, *[None] * (width - len(each))]]
        return Tensor(name, "BYTES", [len(lists), width], flat)


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return ["" if each is None else str(each) for each in value]
    return None if value is None else str(value)


def _without_end(values: list[str]) -> list[str]:
    """Without the missing values at its end."""
    kept = len(values)
    while kept and not values[kept - 1]:
        kept -= 1
    return values[:kept]


def _is_number(text: str) -> bool:
    try:
        return repr(float(text)) == text
    except ValueError:
        return False


def encode_http(tensors: Sequence[Tensor], binary: Callable[[], bool]) -> tuple[bytes, dict[str, str]]:
    """A body and its headers; tensors for which `binary` says so are binary data behind the JSON."""
    inputs, tail = [], b""
    for tensor in tensors:
        described = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if isinstance(tensor.data, list) and binary():
            data = raw(tensor)
            described["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            described["data"] = tensor.data
        inputs.append(described)
    head = json.dumps({"inputs": inputs}).encode()
    return (head + tail, {"Inference-Header-Content-Length": str(len(head))}) if tail else (head, {})


def raw(tensor: Tensor) -> bytes:
    """Its values as the protocol's binary data; a missing one is the empty text."""
    if tensor.datatype in _NUMBERS:
        return np.array(tensor.data, _NUMBERS[tensor.datatype]).tobytes()
    texts = [str("" if value is None else value).encode() for value in tensor.data]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def encode_grpc(tensors: Sequence[Tensor], name: str, is_raw: bool) -> messages.ModelInferRequest:
    """A message with raw or typed contents."""
    message = messages.ModelInferRequest(model_name=name)
    for tensor in tensors:
        each = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if is_raw:
            message.raw_input_contents.append(raw(tensor))
        elif tensor.datatype == "BYTES":
            each.contents.bytes_contents.extend(str(value or "").encode() for value in tensor.data)
        else:
            each.contents.fp64_contents.extend(tensor.data)
    return message


@dataclass
class Answer:
    """What a server said: probabilities `[outputs, rows]`, or an error's code."""

    said: str
    scores: np.ndarray | None = None


class Client:
    """One connection of each kind.

    Attributes:
        name: of the model.
    """

    def __init__(self, server: Server) -> None:
        self._server, self.name = server, server.name
        self._http = http.client.HTTPConnection(server.host, server.port, timeout=_SECONDS)
        self._grpc = grpc.insecure_channel(f"{server.host}:{server.grpc_port}")
        self._infer = self._grpc.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def close(self) -> None:
        """Close both."""
        self._http.close()
        self._grpc.close()

    def post(self, body: bytes, headers: dict[str, str], path: str = "infer", method: str = "POST") -> Answer:
        """Send a body; the answer's outputs are JSON."""
        try:
            self._http.request(method, f"/v2/models/{self._server.name}/{path}", body, headers)
            response = self._http.getresponse()
            content = response.read()
        except TimeoutError:
            self._http.close()
            return Answer("hung")
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            return Answer(f"closed ({type(error).__name__})")
        if response.status != 200:
            return Answer(f"HTTP {response.status}")
        outputs = json.loads(content)["outputs"]
        return Answer("HTTP 200", np.array([output["data"] for output in outputs], np.float32))

    def call(self, message: bytes, seconds: float = _SECONDS) -> Answer:
        """Send a message's bytes by gRPC."""
        try:
            content = self._infer(message, timeout=seconds)
        except grpc.RpcError as error:
            code = error.code()
            hung = code == grpc.StatusCode.DEADLINE_EXCEEDED and seconds == _SECONDS
            return Answer("hung" if hung else f"gRPC {code.name}")
        response = messages.ModelInferResponse.FromString(content)
        if response.raw_output_contents:
            scores = [np.frombuffer(each, "<f4") for each in response.raw_output_contents]
        else:
            scores = [np.array(each.contents.fp32_contents, np.float32) for each in response.outputs]
        return Answer("gRPC OK", np.stack(scores))

    def noise(self, data: bytes) -> Answer:
        """Send bytes to the HTTP port, and hang up."""
        with (
            suppress(OSError),
            socket.create_connection((self._server.host, self._server.port), 5) as connection,
        ):
            connection.sendall(data)
        return Answer("hung up")
