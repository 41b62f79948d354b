"""The server's HTTP application and gRPC service: KServe's, but for scoring, which is checked and batched here."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from fastapi import FastAPI
from kserve.errors import ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
from prometheus_client import exposition
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from cetnet.trainer.serve.batches import Busy, Failed
from cetnet.trainer.serve.plane import Plane
from cetnet.trainer.serve.requests import HEADER_LENGTH, from_grpc, from_http, grpc_response, http_response
from cetnet.trainer.serve.tensors import BadRequest, TooLarge

_BODY_SECONDS = 30.0  # in which a body must have come
_STATUS = {
    TooLarge: 413,
    BadRequest: 400,
    ModelNotFound: 404,
    NotImplementedError: 501,
    Busy: 503,
    Failed: 500,
    ModelNotReady: 503,
    ServerNotReady: 503,
    ServerNotLive: 503,
}
_CODES = {
    TooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Busy: grpc.StatusCode.UNAVAILABLE,
    Failed: grpc.StatusCode.INTERNAL,
}
_GONE = 499  # nobody reads it
_FAULT = "a fault of the server; its log says which"
_AGAIN = {"retry-after": "1"}


def application(plane: Plane) -> FastAPI:
    """The HTTP application."""
    logging.getLogger("kserve").setLevel(logging.CRITICAL)  # a traceback for each refused request, otherwise
    app = FastAPI(title="cetnet", openapi_url=None)
    infer = partial(_infer, plane)
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        app.add_route(path, infer, methods=["POST"])
    app.add_route("/metrics", partial(_metrics, plane), methods=["GET"])
    register_v2_endpoints(app, plane, ModelRepositoryExtension(plane.model_registry))
    for kind in [*_STATUS, Exception]:
        app.add_exception_handler(kind, partial(_refused, plane))
    return app


async def _refused(plane: Plane, _: Request, error: Exception) -> Response:
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), None)
    if status is None:
        plane.tell_fault(error)
        return JSONResponse({"error": _FAULT}, 500)
    return JSONResponse({"error": str(error)}, status, _AGAIN if status == 503 else None)


async def _metrics(plane: Plane, request: Request) -> Response:
    encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
    return Response(encode(plane.metrics.registry), headers={"content-type": content_type})


async def _infer(plane: Plane, request: Request) -> Response:
    plane.check_name(request.path_params["name"])
    wanted = request.path_params.get("version")
    if wanted is not None and wanted != plane.version.name:
        raise ModelNotFound(f"{plane.name}, version {wanted}, (the one that answers is {plane.version.name})")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise BadRequest("content-encoding: only identity is read; send the body as it is")
    try:
        body = await asyncio.wait_for(_body(plane, request), _BODY_SECONDS)
    except (TooLarge, Busy) as error:
        plane.count("http", error)
        raise
    except ClientDisconnect as error:
        plane.count("http", error)
        return Response(status_code=_GONE)
    except TimeoutError as error:
        plane.count("http", error)
        return JSONResponse({"error": f"no whole body in {_BODY_SECONDS:.0f} seconds"}, 408)
    length = request.headers.get(HEADER_LENGTH)

    answer = plane.answer("http", lambda version, limits: from_http(body, length, version, limits))
    found = await _unless_gone(request, answer)
    if found is None:
        return Response(status_code=_GONE)
    content, headers = http_response(found[0], plane.name, found[1])
    return Response(content, headers=headers)


async def _body(plane: Plane, request: Request) -> bytes:
    """The body; raises as `Plane.reading`, before more than the limit is in memory."""
    parts = []
    with plane.reading() as came:
        async for part in request.stream():
            came(len(part))
            parts.append(part)
    return b"".join(parts)


async def _unless_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """The answer, or None once the client has closed its connection: what isn't begun then isn't computed."""
    computed = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(request.receive())  # after the body only the connection's end comes
    try:
        await asyncio.wait({computed, gone}, return_when=asyncio.FIRST_COMPLETED)
        if computed.done():
            return await computed
        return None
    finally:
        for task in (computed, gone):
            task.cancel()
        await asyncio.gather(computed, gone, return_exceptions=True)


class _Service(InferenceServicer):
    """KServe's gRPC service; ModelInfer reads and answers messages without a detour."""

    def __init__(self, plane: Plane) -> None:
        super().__init__(plane, ModelRepositoryExtension(plane.model_registry))
        self._plane = plane

    async def ModelMetadata(self, request: Any, _context: Any) -> Any:
        """Columns and outputs, with the version, which KServe leaves out."""
        return messages.ModelMetadataResponse(**await self._plane.model_metadata(request.name))

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Score; a call whose client is gone, or whose deadline is over, is cancelled by gRPC."""
        plane = self._plane
        plane.check_name(request.model_name)
        if request.model_version not in ("", plane.version.name):
            raise ModelNotFound(f"{plane.name}, version {request.model_version}")
        try:
            found, scores = await plane.answer("grpc", partial(from_grpc, request))
        except tuple(_CODES) as error:
            code = next(code for kind, code in _CODES.items() if isinstance(error, kind))
            if isinstance(error, Busy):
                context.set_trailing_metadata((("grpc-retry-pushback-ms", "1000"),))
            await context.abort(code, str(error))
        except Exception as error:
            if not isinstance(error, ModelNotReady):
                plane.tell_fault(error)
                await context.abort(grpc.StatusCode.INTERNAL, _FAULT)
            raise
        return messages.ModelInferResponse(**grpc_response(found, plane.name, scores))


def add_services(server: grpc.aio.Server, plane: Plane) -> None:
    """Register the protocol's gRPC service, and the standard one for health checks."""
    add_GRPCInferenceServiceServicer_to_server(_Service(plane), server)
    server.add_generic_rpc_handlers((_health(plane),))


def _health(plane: Plane) -> grpc.GenericRpcHandler:
    """`grpc.health.v1.Health/Check`, which Kubernetes and proxies ask; field 1 of the answer is 1: SERVING, or 2."""

    async def check(_request: bytes, _context: Any) -> bytes:
        return b"\x08\x01" if await plane.ready() else b"\x08\x02"

    return grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)}
    )


INTERCEPTORS: list[Callable[..., Any]] = [ExceptionToStatusInterceptor()]
