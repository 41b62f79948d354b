"""One real server, asked by http.client, sockets and gRPC with the protocol's messages."""

import json
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from cetnet.benchmarks.serving.fuzz import fuzz
from cetnet.benchmarks.serving.fuzzer import Server
from cetnet.benchmarks.serving.server_process import Running
from tests.trainer.export.toy import OUTPUTS
from tests.trainer.serve.conftest import columns_of, examples_of, put
from tests.waiting import until

INFER = "/v2/models/cetnet/infer"


def ask(
    server: Running, body: bytes | dict, headers: dict[str, str] | None = None, path: str = INFER
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a POST."""
    connection = HTTPConnection(server.host, server.port, timeout=60)
    try:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, content, headers or {})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def inputs_of(export: Path, rows: Sequence[dict]) -> list[dict[str, Any]]:
    """The rows as tensors: lists as [rows, values], others as [rows], texts or numbers as they are."""
    inputs = []
    for name, is_list in columns_of(export).items():
        values = [row[name] for row in rows]
        shape, datatype = [len(rows)], "BYTES"
        if is_list:
            shape = [len(rows), max(len(each or []) for each in values)]
            values = [[*(each or []), *[None] * (shape[1] - len(each or []))] for each in values]
        elif any(isinstance(each, float) for each in values):
            datatype = "FP64"
        elif any(isinstance(each, int) for each in values):
            datatype = "INT64"
        inputs.append({"name": name, "datatype": datatype, "shape": shape, "data": values})
    return inputs


def sendable(export: Path) -> list[dict]:
    """Examples whose lists don't end with a missing value, which a tensor can't say."""
    lists = [name for name, is_list in columns_of(export).items() if is_list]
    return [row for row in examples_of(export) if all(not row[name] or row[name][-1] for name in lists)]


def expected(rows: Sequence[dict], output: str = OUTPUTS[0]) -> list[float]:
    return [row[f"expected/{output}"] for row in rows]


def test_raw_rows_get_the_answers_of_the_examples(server: Running, export: Path) -> None:
    rows = sendable(export)
    assert len(rows) > 40
    status, _, body = ask(server, {"id": "7", "inputs": inputs_of(export, rows)})
    answer = json.loads(body)
    assert status == 200, body
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "cetnet", "v1")
    assert [each["name"] for each in answer["outputs"]] == OUTPUTS
    for output in answer["outputs"]:
        assert (output["datatype"], output["shape"]) == ("FP32", [len(rows)])
        np.testing.assert_allclose(output["data"], expected(rows, output["name"]), atol=1e-6, rtol=0)


def test_outputs_are_chosen_and_may_be_binary(server: Running, export: Path) -> None:
    rows = sendable(export)[:3]
    outputs = [{"name": OUTPUTS[1], "parameters": {"binary_data": True}}, {"name": OUTPUTS[0]}]
    status, headers, body = ask(server, {"outputs": outputs, "inputs": inputs_of(export, rows)})
    length = int(headers["inference-header-content-length"])
    described = json.loads(body[:length])["outputs"]
    assert status == 200
    assert [each["name"] for each in described] == [OUTPUTS[1], OUTPUTS[0]]
    assert described[0]["parameters"] == {"binary_data_size": 12}
    np.testing.assert_allclose(
        struct.unpack("<3f", body[length:]), expected(rows, OUTPUTS[1]), atol=1e-6, rtol=0
    )
    np.testing.assert_allclose(described[1]["data"], expected(rows), atol=1e-6, rtol=0)


def test_grpc_answers_and_says_why_not(server: Running, export: Path) -> None:
    rows = sendable(export)[:5]
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(messages.ServerReadyRequest()).ready
        assert stub.ModelReady(messages.ModelReadyRequest(name="cetnet")).ready
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"
        metadata = stub.ModelMetadata(messages.ModelMetadataRequest(name="cetnet"))
        assert list(metadata.versions) == ["v1"]
        assert [each.name for each in metadata.inputs] == list(columns_of(export))
        message = messages.ModelInferRequest(model_name="cetnet", id="8")
        for name, is_list in columns_of(export).items():
            values = [row[name] or [] if is_list else row[name] for row in rows]
            if is_list:
                width = max(len(each) for each in values)
                texts = [text or "" for each in values for text in [*each, *[""] * (width - len(each))]]
                shape = [len(rows), width]
            else:
                texts, shape = ["" if each is None else str(each) for each in values], [len(rows)]
            tensor = message.inputs.add(name=name, datatype="BYTES", shape=shape)
            tensor.contents.bytes_contents.extend(text.encode() for text in texts)
        answer = stub.ModelInfer(message)
        assert (answer.id, answer.model_version) == ("8", "v1")
        found = list(answer.outputs[0].contents.fp32_contents)
        np.testing.assert_allclose(found, expected(rows), atol=1e-6, rtol=0)
        del message.inputs[0]
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(message)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
        assert "no column" in error.value.details()  # type: ignore[attr-defined]
        message.model_name = "other"
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(message)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_what_it_is_and_whether_it_is_ready(server: Running, export: Path) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/cetnet/ready", "/v2"):
        assert server.get(path)[0] == 200
    status, body = server.get("/v2/models/cetnet")
    metadata = json.loads(body)
    assert status == 200
    assert {each["name"]: len(each["shape"]) == 2 for each in metadata["inputs"]} == columns_of(export)
    assert [each["name"] for each in metadata["outputs"]] == OUTPUTS
    assert server.get("/v2/models/other")[0] == 404
    assert ask(server, {}, path="/v2/repository/models/cetnet/unload")[0] == 501


def test_each_mistake_is_named(server: Running, export: Path) -> None:
    rows = sendable(export)[:2]
    good = inputs_of(export, rows)
    dense = next(each for each in good if each["datatype"] == "FP64")
    cases: list[tuple[list[dict], int, str]] = [
        (good[1:], 400, f"no column {good[0]['name']!a}"),
        ([*good, good[0]], 400, "comes twice"),
        ([{**good[0], "shape": [3]}, *good[1:]], 400, "2 values; its shape says 3"),
        (
            [{**each, "datatype": "BYTES", "data": ["x"] * 2} if each is dense else each for each in good],
            400,
            "row 0",
        ),
        ([{**good[0], "shape": [1001]}, *good[1:]], 413, "at most 1000"),
    ]
    for inputs, status, problem in cases:
        found, _, body = ask(server, {"inputs": inputs})
        assert (found, problem in json.loads(body)["error"]) == (status, True), body
    large = ask(server, {"inputs": good, "parameters": {"filler": "x" * (1 << 20)}})
    assert large[0] == 413
    assert "larger than 1048576 bytes" in large[2].decode()
    assert ask(server, {"inputs": good}, {"Content-Encoding": "gzip"})[0] == 400
    assert ask(server, {"inputs": good}, path="/v2/models/cetnet/versions/v9/infer")[0] == 404
    assert ask(server, {"inputs": good}, path="/v2/models/cetnet/versions/v1/infer")[0] == 200


def test_metrics_tell_what_came(server: Running, export: Path) -> None:
    def metrics() -> dict[str, float]:
        lines = server.get("/metrics")[1].decode().splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }

    rows = [
        {**row, "item": item} for row, item in zip(sendable(export), [None, "new", "item 3"], strict=False)
    ]
    before = metrics()
    status, _, body = ask(server, {"inputs": inputs_of(export, rows)})
    ask(server, b"{")
    after = metrics()
    assert status == 200, body
    assert not any("gone wrong" in name for name in after)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    assert grown['cetnet_requests_total{outcome="ok",protocol="http"}'] == 1
    assert grown['cetnet_requests_total{outcome="invalid",protocol="http"}'] == 1
    assert grown["cetnet_rows_total"] == grown["cetnet_batch_rows_sum"] == 3
    assert grown["cetnet_request_seconds_count"] == grown["cetnet_queue_seconds_count"] == 1
    assert grown['cetnet_missing_rows_total{column="item"}'] == 1
    assert grown['cetnet_ids_total{feature="item"}'] == 2
    assert grown['cetnet_unknown_ids_total{feature="item"}'] == 1
    total = sum(json.loads(body)["outputs"][0]["data"])
    assert grown['cetnet_prediction_sum_total{output="fused"}'] == pytest.approx(total, rel=1e-6)
    assert after['cetnet_model_info{run="",step="",version="v1"}'] == 1


def test_noise_never_ends_it_hangs_it_or_gets_another_answer(server: Running, export: Path) -> None:
    where = Server(server.host, server.port, server.grpc_port, server.name)
    findings = fuzz(export, where, 400, seed=3)
    assert findings.wrong == []
    assert sum(findings.outcomes.values()) == 400
    assert findings.outcomes["HTTP 200"] > 20
    assert findings.outcomes["gRPC OK"] > 20
    assert server.process.poll() is None
    assert server.get("/v2/health/ready")[0] == 200
    assert "fault of the program" not in server.said()


def asking(server: Running, export: Path, stop: threading.Event, found: list[tuple[int, str, float]]) -> None:
    """Ask for one row again and again: statuses, versions and probabilities."""
    rows = sendable(export)[:1]
    body = json.dumps({"inputs": inputs_of(export, rows)}).encode()
    connection = HTTPConnection(server.host, server.port, timeout=60)
    while not stop.is_set():
        connection.request("POST", INFER, body)
        response = connection.getresponse()
        content = json.loads(response.read())
        found.append((response.status, content["model_version"], content["outputs"][0]["data"][0]))
    connection.close()


def test_versions_are_swapped_under_load_and_broken_ones_refused(
    server: Running, export: Path, other_export: Path, tmp_path: Path
) -> None:
    folder: Path = server.folder  # type: ignore[attr-defined]
    stop, found = threading.Event(), []
    thread = threading.Thread(target=asking, args=(server, export, stop, found))
    thread.start()
    try:
        put(other_export, folder / "v2")
        until(lambda: found and found[-1][1] == "v2", "v2 answers", 60)
        # The same name, another export: as `cetnet export --overwrite`.
        right = [expected(sendable(each)[:1])[0] for each in (export, other_export)]
        put(export, folder / "v2")
        until(lambda: abs(found[-1][2] - right[0]) < 1e-6, "the v2 that was renamed into its place", 60)
        broken = tmp_path / "broken"
        put(other_export, broken)
        (broken / "model.pt2").unlink()
        (broken / "model.pt2").write_bytes((other_export / "model.pt2").read_bytes()[:-1000])
        put(broken, folder / "v10")
        until(lambda: server.metric("cetnet_model_refused_total") == 1, "v10 is refused", 60)
    finally:
        stop.set()
        thread.join()
    assert {status for status, _, _ in found} == {200}
    versions = [version for _, version, _ in found]
    assert versions == sorted(versions)
    assert found[-1][1] == "v2"
    assert all(min(abs(score - of) for of in right) < 1e-6 for _, _, score in found)
    assert server.metric("cetnet_model_swaps_total") == 2
    assert re.search(r"refused \S+/v10: .*; v2 answers", server.said())


def test_told_to_stop_it_finishes_what_is_in_flight(server: Running, export: Path) -> None:
    """Last: the server is gone after it."""
    rows = sendable(export)
    body = json.dumps({"inputs": inputs_of(export, rows)}).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((server.host, server.port), 60) as connection:
        connection.sendall(head + body[:-1])
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in server.said(), "it says so", 60)
        connection.sendall(body[-1:])
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.said()
