"""What KServe's endpoints ask: is the server ready, what is its model, and what answer has a request.

The one place, with `endpoints.py`, that knows KServe's classes.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kserve.errors import ModelNotFound, ModelNotReady
from kserve.model import BaseKServeModel
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

import cetnet
from cetnet.trainer.failures import tell
from cetnet.trainer.serve.batches import Batches, Busy
from cetnet.trainer.serve.metrics import Metrics
from cetnet.trainer.serve.requests import Request
from cetnet.trainer.serve.tensors import BadRequest, Limits, TooLarge
from cetnet.trainer.serve.version import Version, Versions

_OUTCOMES = {
    TooLarge: "too_large",
    BadRequest: "invalid",
    Busy: "rejected",
    ModelNotReady: "rejected",
    ClientDisconnect: "cancelled",
    TimeoutError: "cancelled",
    asyncio.CancelledError: "cancelled",
}
_BODIES = 16  # of the largest size, that may be in memory at once
_TOLD = 10  # faults


class _Model(BaseKServeModel):
    """The model's name in KServe's list of models."""

    def __init__(self, name: str, versions: Versions) -> None:
        super().__init__(name)
        self._versions = versions

    async def healthy(self) -> bool:
        """Whether a version answers."""
        return self._versions.current is not None


class _Repository(ModelRepository):
    """`load` looks for a newer version now; nobody can unload by a request."""

    def __init__(self, name: str, versions: Versions) -> None:
        super().__init__()
        self._versions = versions
        self.update(_Model(name, versions))

    async def load(self, name: str) -> bool:
        """Look for a newer version."""
        if name not in self.models:
            raise ModelNotFound(name)
        await self._versions.look()
        return True

    def unload(self, name: str) -> None:
        """Refuse."""
        raise NotImplementedError(f"{name} can't be unloaded by a request; stop the server")


class Plane(DataPlane):
    """KServe's data plane over one model, its versions and its batches.

    Attributes:
        name: of the model.
        limits: of requests.
        metrics: of the server.
        draining: set once the server is told to stop: it is alive, but not ready.
    """

    def __init__(
        self, name: str, versions: Versions, batches: Batches, limits: Limits, metrics: Metrics
    ) -> None:
        super().__init__(_Repository(name, versions))
        self.name, self.limits, self.metrics = name, limits, metrics
        self._versions, self._batches = versions, batches
        self._faults = self._read = 0
        self.draining = False

    @contextmanager
    def reading(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of a body while it is in memory: the block tells of each part that has come.

        Raises:
            TooLarge: it is larger than a request may be.
            Busy: all bodies together are larger than a few requests may be.
        """
        size = 0

        def came(more: int) -> None:
            nonlocal size
            size += more
            self._read += more
            if size > self.limits.bytes:
                raise TooLarge(f"the body is larger than {self.limits.bytes} bytes; send less rows at once")
            if self._read > _BODIES * self.limits.bytes:
                raise Busy("too much is being read; try again, or ask another server")

        try:
            yield came
        finally:
            self._read -= size

    def tell_fault(self, error: Exception) -> None:
        """Say what an error of the program was, with its traceback in a file, of the first few."""
        self._faults += 1
        if self._faults <= _TOLD:
            tell(error)

    def metadata(self) -> dict[str, Any]:
        """Of the server."""
        return {
            "name": "cetnet",
            "version": cetnet.__version__,
            "extensions": ["model_repository_extension", "binary_tensor_data"],
        }

    async def ready(self) -> bool:
        """Whether requests are answered."""
        return self._versions.current is not None and not self.draining

    async def model_ready(self, model_name: str, _disable_health_check: bool = False) -> bool:
        """Whether a version of this name answers; raises ModelNotFound for another name."""
        self.check_name(model_name)
        return await self.ready()

    def check_name(self, name: str) -> None:
        """Raise ModelNotFound unless it is this model's."""
        if name != self.name:
            raise ModelNotFound(name)

    @property
    def version(self) -> Version:
        """The one that answers; raises ModelNotReady."""
        if self._versions.current is None:
            raise ModelNotReady(self.name)
        return self._versions.current

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """The raw columns as inputs, -1 for sizes that a request chooses; what they take is in request.json."""
        self.check_name(model_name)
        version = self.version
        return {
            "name": self.name,
            "versions": [version.name],
            "platform": f"cetnet_{version.scorer.target}",
            "inputs": [
                {"name": name, "datatype": "BYTES", "shape": [-1, -1] if is_list else [-1]}
                for name, is_list in version.columns.items()
            ],
            "outputs": [{"name": name, "datatype": "FP32", "shape": [-1]} for name in version.outputs],
        }

    async def answer(
        self, protocol: str, parse: Callable[[Version, Limits], Request]
    ) -> tuple[Request, NDArray]:
        """Parse and score a request, and count what became of it.

        Raises:
            BadRequest, Busy, Failed, ModelNotReady: as they say.
        """
        start = time.perf_counter()
        try:
            request = parse(self.version, self.limits)
            scores = await self._batches.score(request)
        except BaseException as error:
            self.count(protocol, error)
            raise
        self.metrics.requests.labels(protocol, "ok").inc()
        self.metrics.seconds.observe(time.perf_counter() - start)
        return request, scores

    def count(self, protocol: str, error: BaseException) -> None:
        """Count a request that was not answered with scores."""
        outcome = next((name for kind, name in _OUTCOMES.items() if isinstance(error, kind)), "failed")
        self.metrics.requests.labels(protocol, outcome).inc()
