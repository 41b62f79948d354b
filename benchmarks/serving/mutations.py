"""One change of a request each, that makes it wrong; or none."""

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from cetnet.benchmarks.serving.fuzzer import Answer, Client, Fuzzer, Tensor, encode_grpc, encode_http, raw

Rows = list[dict[str, Any]]
_BAD_SHAPES: list[Any] = [
    [],
    [0],
    [-1],
    [2**31],
    [2**63],
    [1.5],
    ["1"],
    [None],
    [True],
    "1",
    None,
    {},
    [1, 1, 1],
    3,
]
_BAD_TYPES: list[Any] = ["FP8", "bytes", "", None, 7, [], "INT", "STRING", "BF16"]
_BAD_NAMES: list[Any] = ["", None, 7, [], {"a": 1}, "no such column"]


def sent(fuzzer: Fuzzer, client: Client) -> tuple[str, Answer, Rows | None]:
    """Send one request: what was done to it, the answer, and the rows of which it must be (None: an error)."""
    rows = fuzzer.rows()
    tensors = fuzzer.tensors(rows)
    way: Callable[..., tuple[str, Answer, Rows | None]] = fuzzer.random.choice(
        [_right, _right, _tensor, _tensor, _json, _binary, _bytes, _grpc, _grpc_bytes, _around]
    )
    return way(fuzzer.random, client, tensors, rows)


def _right(
    random: Random, client: Client, tensors: list[Tensor], rows: Rows
) -> tuple[str, Answer, Rows | None]:
    if random.random() < 0.5:
        body, headers = encode_http(tensors, lambda: random.random() < 0.5)
        return "right, HTTP", client.post(body, headers), rows
    message = encode_grpc(tensors, client.name, random.random() < 0.5)
    return "right, gRPC", client.call(message.SerializeToString()), rows


def _tensor(
    random: Random, client: Client, tensors: list[Tensor], _: Rows
) -> tuple[str, Answer, Rows | None]:
    """A tensor that says of itself what isn't so, or holds what it can't."""
    victim = random.choice(tensors)
    what = random.choice(["shape", "rows", "datatype", "name", "twice", "absent", "value", "values", "data"])
    if what == "shape":
        victim.shape = random.choice(_BAD_SHAPES)
    elif what == "rows":
        victim.shape = [victim.shape[0] + random.choice([1, 2, 100]), *victim.shape[1:]]
    elif what == "datatype":
        victim.datatype = random.choice(_BAD_TYPES)
    elif what == "name":
        victim.name = random.choice(_BAD_NAMES)
    elif what == "twice":
        tensors.append(copy.copy(victim))
    elif what == "absent":
        tensors.remove(victim)
    elif what == "value":
        victim.shape, victim.datatype, victim.data = _holding(random, victim)
    elif what == "values":
        victim.data = [*victim.data, *victim.data, None]
    else:
        victim.data = random.choice([None, "text", 7, {}, [{}], [[[1]]]])
    body, headers = encode_http(tensors, lambda: False)
    return f"a tensor's {what}", client.post(body, headers), None


def _holding(random: Random, victim: Tensor) -> tuple[Any, str, list[Any]]:
    """Shape, datatype and values of a tensor, one of which it can't hold."""
    datatype, value = random.choice(
        [
            ("INT64", 2**63),
            ("INT64", -(2**63) - 1),
            ("UINT64", 2**64),
            ("UINT64", -1),
            ("INT8", 128),
            ("INT32", 1.5),
            ("INT64", "1"),
            ("INT64", True),
            ("INT64", [[1]]),
            ("FP32", "1"),
            ("FP64", True),
            ("FP64", {}),
            ("FP64", 10**400),
            ("BOOL", 1),
            ("BOOL", "true"),
            ("BYTES", 1),
            ("BYTES", 1.5),
            ("BYTES", False),
            ("BYTES", [["a"]]),
            ("BYTES", "\ud800"),
        ]
    )
    values: list[Any] = [None] * len(victim.data)
    if not values:
        return [len(victim.data)], datatype, [value]
    values[random.randrange(len(values))] = value
    return victim.shape, datatype, values


def _json(random: Random, client: Client, tensors: list[Tensor], _: Rows) -> tuple[str, Answer, Rows | None]:
    """Something that isn't a request's JSON."""
    body, _headers = encode_http(tensors, lambda: False)
    cut = body[: random.randrange(len(body))]
    bodies = {
        "cut": cut,
        "empty": b"",
        "nothing": b"null",
        "an array": b"[" + body + b"]",
        "no inputs": b'{"inputs": []}',
        "inputs of numbers": b'{"inputs": [1, 2]}',
        "inputs an object": body.replace(b'"inputs": [', b'"inputs": {"a": [', 1) + b"}",
        "deep": b"[" * 100_000,
        "deep in a tensor": b'{"inputs": [{"name": "a", "data": ' + b"[" * 50_000,
        "a number of many digits": b'{"inputs": [{"name": "a", "data": [' + b"9" * 6000 + b"]}]}",
        "NaN": body.replace(b"null", b"NaN", 1) if b"null" in body else b"NaN",
        "infinity": b'{"inputs": [{"name": "a", "datatype": "FP64", "shape": [1], "data": [1e999]}]}',
        "a key twice": b'{"inputs": [], ' + body[1:],
        "Latin-1": body.replace(b'"inputs"', b'"inp\xfcts"', 1),
        "UTF-16": body.decode().encode("utf-16"),
        "bytes": random.randbytes(random.randrange(1, 300)),
        "an id of a number": b'{"id": 7, ' + body[1:],
        "outputs that aren't there": b'{"outputs": [{"name": "x"}], ' + body[1:],
        "outputs of numbers": b'{"outputs": [7], ' + body[1:],
        "parameters an array": b'{"parameters": [1], ' + body[1:],
        "binary outputs of text": b'{"parameters": {"binary_data_output": "yes"}, ' + body[1:],
    }
    what = random.choice(list(bodies))
    return f"JSON: {what}", client.post(bodies[what], {}), None


def _binary(
    random: Random, client: Client, tensors: list[Tensor], _: Rows
) -> tuple[str, Answer, Rows | None]:
    """Binary data of another size than said, or that is no text."""
    body, headers = encode_http(tensors, lambda: True)
    length = int(headers["Inference-Header-Content-Length"])
    head, tail = body[:length], body[length:]
    what = random.choice(["short", "long", "no tail", "length", "size", "text length", "not UTF-8", "both"])
    if what == "short":
        tail = tail[: random.randrange(len(tail))]
    elif what == "long":
        tail += random.randbytes(random.choice([1, 4, 100]))
    elif what == "no tail":
        tail = b""
    elif what == "length":
        wrong = random.choice(["-1", "x", "", str(10**9), str(length - 1), str(length + 1), "1e3", "0"])
        headers["Inference-Header-Content-Length"] = wrong
    elif what == "size":
        content = json.loads(head)
        size = random.choice([-1, 2**40, 2**63, 1.5, "7", True, None])
        random.choice(content["inputs"])["parameters"]["binary_data_size"] = size
        head = json.dumps(content).encode()
        headers["Inference-Header-Content-Length"] = str(len(head))
    elif what == "both":
        content = json.loads(head)
        content["inputs"][0]["data"] = tensors[0].data
        head = json.dumps(content).encode()
        headers["Inference-Header-Content-Length"] = str(len(head))
    else:
        text = next(n for n, tensor in enumerate(tensors) if tensor.datatype == "BYTES" and tensor.data)
        data = [raw(tensor) for tensor in tensors]
        size = len(data[text])
        spoilt = b"\1\0\0\0\xff" * (size // 5) + b"\0" * (size % 5)
        data[text] = b"\xff\xff\xff\x7f" + data[text][4:] if what == "text length" else spoilt
        if size >= 5 or what == "text length":
            tail = b"".join(data)
        else:
            tail += b"\0"
    return f"binary: {what}", client.post(head + tail, headers), None


def _bytes(random: Random, client: Client, tensors: list[Tensor], _: Rows) -> tuple[str, Answer, Rows | None]:
    """Noise on a connection."""
    body, _headers = encode_http(tensors, lambda: False)
    head = f"POST /v2/models/{client.name}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    data = random.choice(
        [
            random.randbytes(random.randrange(1, 2000)),
            head,
            head + body[: len(body) // 2],
            head + body,  # and doesn't wait for the answer
            head.replace(b"Content-Length: ", b"Content-Length: -"),
            head.replace(b"HTTP/1.1", b"HTTP/9.9"),
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 5000,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            head.replace(f"Content-Length: {len(body)}".encode(), b"Transfer-Encoding: chunked")
            + b"ffffffff\r\n",
        ]
    )
    return "noise", client.noise(data), None


def _grpc(
    random: Random, client: Client, tensors: list[Tensor], rows: Rows
) -> tuple[str, Answer, Rows | None]:
    """A message that contradicts itself."""
    is_raw = random.random() < 0.5
    message = encode_grpc(tensors, client.name, is_raw)
    victim = random.choice(message.inputs)
    what = random.choice(
        ["name", "twice", "absent", "datatype", "shape", "contents", "output", "model", "deadline"]
    )
    seconds = 30.0
    if what == "name":
        victim.name = random.choice(["", "no such column"])
    elif what == "twice":
        message.inputs.append(victim)
        if is_raw:
            message.raw_input_contents.append(b"")
    elif what == "absent":
        del message.inputs[0]
        if is_raw:
            del message.raw_input_contents[0]
    elif what == "datatype":
        victim.datatype = random.choice(["", "FP8", "STRING", "FP16"])
    elif what == "shape":
        wrong: Sequence[int] = random.choice(
            [[], [0], [-1], [2**62], [2**62, 2**62], [1, 1, 1], [len(rows) + 1]]
        )
        del victim.shape[:]
        victim.shape.extend(wrong)
    elif what == "contents":
        _spoil(random, message, is_raw)
    elif what == "output":
        message.outputs.add(name="no such output")
    elif what == "model":
        message.model_name = random.choice(["", "other", "a/b", "\0"])
    else:
        answer = client.call(message.SerializeToString(), 0.0005)
        return "gRPC: deadline", answer, None if answer.scores is None else rows
    return f"gRPC: {what}", client.call(message.SerializeToString(), seconds), None


def _spoil(random: Random, message: Any, is_raw: bool) -> None:
    """Make the contents of a message others than its inputs say."""
    if not is_raw:
        message.inputs[0].contents.uint64_contents.append(7)
        message.inputs[0].contents.bytes_contents.extend([b"a", b"b"])
        message.inputs[0].contents.fp64_contents.extend([1, 2])
        return
    which = random.choice(["more", "less", "longer", "both"])
    if which == "more":
        message.raw_input_contents.append(b"")
    elif which == "less":
        del message.raw_input_contents[0]
    elif which == "longer":
        message.raw_input_contents[0] += b"\xff"
    else:
        message.inputs[0].contents.int64_contents.append(1)


def _grpc_bytes(
    random: Random, client: Client, tensors: list[Tensor], _: Rows
) -> tuple[str, Answer, Rows | None]:
    """What is no message."""
    data = encode_grpc(tensors, client.name, True).SerializeToString()
    what = random.choice(["bytes", "cut", "empty"])
    if what == "cut":
        data = data[: random.randrange(len(data))]
    elif what == "bytes":
        data = random.randbytes(random.randrange(1, 500))
    else:
        data = b""
    return f"gRPC bytes: {what}", client.call(data), None


def _around(
    random: Random, client: Client, tensors: list[Tensor], _: Rows
) -> tuple[str, Answer, Rows | None]:
    """A right body, asked in a wrong way."""
    body, headers = encode_http(tensors, lambda: False)
    what = random.choice(
        ["method", "path", "version", "encoding", "other model", "too many rows", "a long list"]
    )
    path, method = "infer", "POST"
    if what == "method":
        method = random.choice(["GET", "PUT", "DELETE", "PATCH", "BREW"])
    elif what == "path":
        path = random.choice(["infers", "infer/..", "%00", "generate", "explain"])
    elif what == "version":
        path = "versions/no%20such/infer"
    elif what == "encoding":
        headers["Content-Encoding"] = random.choice(["gzip", "br", "x"])
    elif what == "other model":
        path = "../other/infer"
    else:
        victim = random.choice(tensors)
        victim.datatype = "BYTES"
        victim.data, victim.shape = ["x"] * 20_000, [20_000]
        if what == "a long list":
            victim.data, victim.shape = ["x"] * 20_000, [1, 20_000]
        body, headers = encode_http(tensors, lambda: False)
    return f"asked: {what}", client.post(body, headers, path, method), None
