"""The copy of a model on which settings are tried: staged once under a name of its own, loaded again for each setting.

The reconciler does not know the name and leaves it alone. The lock on a server's model repository ensures that only one
tuning runs there; the kernel releases it when the process ends, however it ends, and the next process that takes the
lock removes what the earlier one left loaded or staged (`sweep`).
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controlplane.domain.comparison import compare
from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.manifest import Manifest
from controlplane.domain.names import TUNING_SUFFIX, tuning_name
from controlplane.domain.samples import MAX_SAMPLES_BYTES, Sample, Tensors
from controlplane.domain.tuning import Measurement, Setting, Trial, TrialState
from controlplane.errors import (
    ConflictError,
    ControlPlaneError,
    InferenceError,
    InvalidConfigError,
    InvalidInputError,
    LoadRefusedError,
    NotFoundError,
    TritonTimeoutError,
)
from controlplane.gpu.host import resident_bytes
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.services.tuning.load_generator import Load, generate
from controlplane.triton.client import TritonClient
from controlplane.triton.instance_groups import Gpus, on_gpus, present_gpus
from controlplane.triton.model_config import build_config

logger = logging.getLogger(__name__)

LOCK = ".tuning"
"""The lock file in a model repository's root; Triton does not take it for a model."""

_LOOK_SECONDS = 0.05
_GONE = frozenset({"UNAVAILABLE", "UNKNOWN", ""})


@dataclass(frozen=True, slots=True)
class Ask:
    """The way to measure a setting.

    Attributes:
        loads: The loads, one after the other, the lightest first.
        memory_limit_bytes: Maximum resident memory of the copy's processes; None: no limit.
        end: Monotonic time at which the measurement must be over.
    """

    loads: Sequence[Load]
    memory_limit_bytes: int | None
    end: float


@dataclass
class _Memory:
    """The memory of the copy's processes, observed while it is loaded."""

    server: ManagedServer
    name: str
    limit: int | None
    peak: int = 0
    exceeded: bool = False

    def look(self) -> None:
        assert self.server.embedded is not None
        now = sum(resident_bytes(self.server.embedded.processes_of(self.name)).values())
        self.peak = max(self.peak, now)
        self.exceeded = self.exceeded or (self.limit is not None and now > self.limit)

    async def watch(self) -> None:
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(_LOOK_SECONDS)


@dataclass
class TrialModel:
    """A version of a model under its tuning name on one server.

    Attributes:
        server: The server.
        model: The model's own name.
        version: The version.
        manifest: Its manifest.
        requests: Golden samples, cut to requests of the configured size.
        client: A connection of its own, for the load.
    """

    server: ManagedServer
    model: str
    version: int
    manifest: Manifest
    requests: Sequence[Sample]
    client: TritonClient
    _loading: "asyncio.Future[None] | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Return its name in Triton."""
        return tuning_name(self.model)

    async def stage(self, registry: Registry) -> None:
        """Put the version into the model repository under the tuning name."""

        def fetch_and_stage() -> None:
            repository, checkout = self.server.repository, registry.checkout
            repository.install(self.name, self.version, self.manifest, None, {}, checkout, lambda: None)
            # A tuning that was interrupted may have left it there.
            repository.make_ready(self.name, {self.version: self.manifest}, None, None, dict, checkout)

        await asyncio.to_thread(fetch_and_stage)

    async def measure(self, setting: Setting, settings: DeploymentSettings, ask: Ask) -> Trial:
        """Load the copy with a setting, check its outputs, generate load on it, and unload it.

        Args:
            setting: The setting.
            settings: The same as a deployment's settings.
            ask: How to measure.

        Raises:
            TritonUnavailableError: The server is unavailable; that says nothing about the setting.
        """
        memory = _Memory(self.server, self.name, ask.memory_limit_bytes)
        watch = asyncio.create_task(memory.watch()) if self.server.embedded else None
        measurements: tuple[Measurement, ...] = ()
        try:
            try:
                # We send our own requests before the measurement; Triton's warm-up would count as load time.
                cold = settings.model_copy(update={"warmup": False})
                config = on_gpus(build_config(self.name, self.manifest, cold, [self.version]), await self._gpus())
                await self._load(config)
                state, message = TrialState.MEMORY, ""
                if not memory.exceeded:
                    state, message, measurements = await self._run(config, ask, memory)
            except (LoadRefusedError, InferenceError, InvalidConfigError, TritonTimeoutError) as error:
                state, message = TrialState.FAILED, error.message
            finally:
                await self.server.client.unload(self.name)
        finally:
            if watch is not None:
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch
        if memory.exceeded:
            state, measurements = TrialState.MEMORY, ()
            message = f"its processes used {memory.peak} bytes; the limit is {ask.memory_limit_bytes}"
        return Trial(
            setting=setting,
            state=state,
            measurements=measurements,
            memory_bytes=memory.peak or None,
            message=message,
        )

    async def remove(self) -> None:
        """Unload the copy and remove it from the model repository."""
        if self._loading is not None and not self._loading.done():
            # Triton cannot cancel a load: it would finish after our unload.
            await asyncio.wait([self._loading])
        try:
            await self.server.client.unload(self.name)
        finally:
            await asyncio.to_thread(self.server.repository.remove_model, self.name)
            await self.client.close()

    async def _gpus(self) -> Gpus | None:
        """Return the GPUs that the model itself uses, since others would measure differently. None: left to Triton."""
        try:
            return present_gpus(await self.server.client.model_config(self.model)) or None
        except NotFoundError:
            return None

    async def _load(self, config: dict[str, Any]) -> None:
        self._loading = asyncio.ensure_future(self.server.client.load(self.name, config))
        try:
            await asyncio.shield(self._loading)
        except asyncio.CancelledError:
            await asyncio.wait([self._loading])
            if not self._loading.cancelled():
                self._loading.exception()  # mark the exception as retrieved
            raise

    async def _run(
        self, config: dict[str, Any], ask: Ask, memory: _Memory
    ) -> tuple[TrialState, str, tuple[Measurement, ...]]:
        inputs = [request.inputs for request in self.requests]
        alone = {}
        for index, tensors in enumerate(inputs):
            timeout = max(0.1, min(ask.loads[0].timeout_seconds, ask.end - time.monotonic()))
            alone[index], _ = await self.client.infer(
                self.name, tensors, version=self.version, timeout=timeout, config=config
            )
        if wrong := self._wrong(alone):
            return TrialState.WRONG, f"with single requests: {wrong}", ()
        measurements = []
        for load in ask.loads:
            observed = await generate(
                self.client,
                self.name,
                inputs,
                load,
                version=self.version,
                config=config,
                stop=lambda: memory.exceeded or time.monotonic() > ask.end,
            )
            if observed.failure:
                return TrialState.FAILED, f"with {load.clients} clients: {observed.failure}", ()
            if observed.measurement is None:
                return TrialState.TIME, "the time limit was reached while it was measured", ()
            # Requests are batched only under load, and a model's outputs may differ in a batch.
            if wrong := await asyncio.to_thread(self._wrong, observed.answers):
                return TrialState.WRONG, f"with {load.clients} clients: {wrong}", ()
            measurements.append(observed.measurement)
        return TrialState.MEASURED, "", tuple(measurements)

    def _wrong(self, answers: "dict[int, Any] | Any") -> str:
        """Return how the outputs differ from the recorded ones; empty if they do not."""
        tolerances = self.manifest.golden.tolerances if self.manifest.golden else {}
        for index, outputs in answers.items():
            for comparison in compare(outputs, self.requests[index].outputs, tolerances):
                if not comparison.agrees:
                    return comparison.reason
        return ""


def requests_of(samples: Sequence[Sample], rows: int | None) -> tuple[Sample, ...]:
    """Make requests from golden samples.

    Args:
        samples: The samples.
        rows: Rows of each request, for a batched signature: samples are cut, and repeated from the start at their end.
            None keeps them as they were recorded.

    Raises:
        InvalidInputError: They would be too large to keep.
    """
    if rows is None:
        return tuple(samples)
    size = sum(
        math.ceil(array.shape[0] / rows) * rows * (array.nbytes // max(1, array.shape[0]))
        for sample in samples
        for array in (*sample.inputs.values(), *sample.outputs.values())
    )
    if size > MAX_SAMPLES_BYTES:
        raise InvalidInputError(f"requests of {rows} rows would take {size} bytes in total; give fewer rows", rows=rows)
    made = []
    for sample in samples:
        have = _rows(sample.inputs)
        for start in range(0, have, rows):
            taken = np.arange(start, start + rows) % have
            made.append(Sample(_take(sample.inputs, taken), _take(sample.outputs, taken)))
    return tuple(made)


def most_rows(requests: Sequence[Sample]) -> int:
    """Return the rows of the largest request of a batched signature."""
    return max(_rows(request.inputs) for request in requests)


def _rows(tensors: Tensors) -> int:
    return int(next(iter(tensors.values())).shape[0])


def _take(tensors: Tensors, rows: Any) -> Tensors:
    return {name: array[rows] for name, array in tensors.items()}


@asynccontextmanager
async def alone_on(server: ManagedServer, *, patience_seconds: float = 0.0) -> AsyncIterator[None]:
    """Hold the only tuning lock of a server, with nothing left over from a tuning that was killed.

    Args:
        server: The server.
        patience_seconds: How long to wait for another holder; a `sweep` takes seconds.

    Raises:
        ConflictError: Another tuning runs there: two at once would distort each other's measurements.
    """
    lock = server.repository.lock(LOCK.removeprefix("."))
    end = time.monotonic() + patience_seconds
    while not await asyncio.to_thread(lock.try_acquire):
        if time.monotonic() >= end:
            raise ConflictError(
                f"another tuning is in progress on {server.name}; wait until it ends, or cancel it", server=server.name
            )
        await asyncio.sleep(_LOOK_SECONDS)
    try:
        await _remove_leftovers(server)
        yield
    finally:
        await asyncio.to_thread(lock.release)


async def sweep(server: ManagedServer) -> bool:
    """Remove what a killed tuning left on a server. Return False if it must be tried again.

    If a tuning runs at this moment there is nothing to do: it has removed the leftovers, and removes its own copy.
    """
    try:
        async with alone_on(server):
            return True
    except ConflictError:
        return True
    except (ControlPlaneError, OSError) as error:
        logger.info("failed to remove old tuning copies from %s; will try again: %s", server.name, error)
        return False


async def _remove_leftovers(server: ManagedServer) -> None:
    loaded = {
        entry.model
        for entry in await server.client.index()
        if entry.model.endswith(TUNING_SUFFIX) and entry.state not in _GONE
    }
    staged = await asyncio.to_thread(server.repository.staged)
    for name in sorted(loaded | {name for name in staged if name.endswith(TUNING_SUFFIX)}):
        # Also if the index does not list it: an abandoned load may still be running.
        await server.client.unload(name)
        await asyncio.to_thread(server.repository.remove_model, name)
        logger.warning("removed %s from %s: its tuning was killed", name, server.name)
