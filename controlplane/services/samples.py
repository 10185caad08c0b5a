"""Golden samples that are recorded after the publication: from inputs that are given, or from clients' requests."""

import asyncio
import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.domain.arrays import Array
from controlplane.domain.comparison import compare
from controlplane.domain.recorded_samples import SampleRecord, SampleSource
from controlplane.domain.samples import Sample, Tensors
from controlplane.domain.signature import DataType
from controlplane.errors import (
    ConflictError,
    ControlPlaneError,
    InferenceError,
    InvalidInputError,
    NotFoundError,
    TritonTimeoutError,
)
from controlplane.gateway.gateway import Gateway
from controlplane.gateway.recording import CopiedRequest
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.recorded_samples import RecordedSamples
from controlplane.registry.registry import Registry
from controlplane.servers.server_set import ServerSet
from controlplane.services.inference import Answer, Inference
from controlplane.services.tensors import InputTensor, read_inputs
from controlplane.services.versions import Versions
from controlplane.triton.asked import inputs_from_grpc, inputs_from_http

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RecordResult:
    """What was recorded.

    Attributes:
        model: The model.
        version: The version that answered.
        record: The record.
        skipped: Why requests were left out, one reason for each.
    """

    model: str
    version: int
    record: SampleRecord
    skipped: list[str]


class SampleRecording:
    """Use cases for recorded samples.

    Args:
        registry: The registry.
        reconciler: Knows the deployments.
        inference: Sends the requests to the deployed version.
        versions: Finds versions.
        servers: The Triton servers.
        gateway: The gateway of this instance; None if it has none.
    """

    def __init__(
        self,
        registry: Registry,
        reconciler: Reconciler,
        inference: Inference,
        versions: Versions,
        servers: ServerSet,
        gateway: Gateway | None,
    ) -> None:
        self._registry = registry
        self._reconciler = reconciler
        self._inference = inference
        self._versions = versions
        self._servers = servers
        self._gateway = gateway

    @property
    def _recorded(self) -> RecordedSamples:
        return self._registry.recorded

    async def records(self, model: str, selector: str) -> tuple[int, list[SampleRecord]]:
        """Return a version's number and its records, the oldest first.

        Raises:
            NotFoundError: The version does not exist.
            InvalidArtifactError: A record is damaged.
        """
        entry = await self._versions.select(model, selector)
        found = await asyncio.to_thread(self._recorded.read, model, entry.number)
        return entry.number, sorted((record for record, _ in found), key=lambda record: record.at)

    async def remove(self, model: str, selector: str, record_id: str) -> None:
        """Delete a record; the next load proves the version without it.

        Raises:
            NotFoundError: The version or the record does not exist.
        """
        entry = await self._versions.select(model, selector)
        await asyncio.to_thread(self._recorded.remove, model, entry.number, record_id)

    async def add(self, model: str, requests: Sequence[Sequence[InputTensor]], *, actor: str) -> RecordResult:
        """Send inputs to the deployed version and record its answers.

        Raises:
            NotFoundError: The model is not deployed.
            ConflictError: No version is active.
            InvalidInputError: The inputs do not match, or the version does not answer them alike twice.
        """
        return await self._ask(model, requests, SampleSource.GIVEN, [], actor)

    async def record(self, model: str, *, count: int, seconds: float, actor: str) -> RecordResult:
        """Record clients' next requests through this instance's gateway, with the answers of the deployed version.

        Raises:
            NotFoundError: The model is not deployed, or no request came in time.
            ConflictError: This instance has no gateway, the model is being recorded already, or has sequences.
            InvalidInputError: No request can be recorded.
        """
        if self._gateway is None:
            raise ConflictError("this instance has no gateway, so no client's request passes it; ask one that has")
        if self._reconciler.spec(model) is None:
            raise NotFoundError(f"{model!r} is not deployed", model=model)
        if self._reconciler.takes_sequences(model):
            raise ConflictError(
                f"{model} has sequence batching, and a request of a sequence has no meaning alone; give inputs with "
                f"`tritonctl samples add {model} --inputs FILE`",
                model=model,
            )
        logger.info("%s records up to %d requests of clients to %s for %g s", actor, count, model, seconds)
        copied = await self._gateway.activator.recorder.record(model, count, seconds)
        if not copied:
            raise NotFoundError(
                f"no request to {model} of at most 1 MiB passed this gateway in {seconds:g} s; send requests to the "
                "addresses that `tritonctl gateway` shows, or record for longer",
                model=model,
            )
        requests, skipped = [], []
        for one in copied:
            try:
                requests.append([_tensor(name, array) for name, array in (await _inputs(one)).items()])
            except InvalidInputError as error:
                skipped.append(error.message)
        return await self._ask(model, requests, SampleSource.TRAFFIC, skipped, actor)

    async def _ask(
        self,
        model: str,
        requests: Sequence[Sequence[InputTensor]],
        source: SampleSource,
        skipped: list[str],
        actor: str,
    ) -> RecordResult:
        samples: list[Sample] = []
        version, server = 0, ""
        for inputs in requests:
            try:
                first = await self._answer(model, inputs, version or None)
                again = await self._answer(model, inputs, first.version)
            except (InvalidInputError, InferenceError, TritonTimeoutError) as error:
                skipped.append(error.message)
                continue
            version, server = first.version, first.server
            if any(not one.agrees for one in compare(again.tensors, first.tensors, {})):
                skipped.append("the version answers the same request differently each time")
                continue
            manifest = await asyncio.to_thread(self._registry.manifest, model, version)
            samples.append(Sample(read_inputs(inputs, manifest.signature), first.tensors))
        if not samples:
            raise InvalidInputError(f"nothing was recorded: {skipped[0] if skipped else 'no inputs were given'}")
        return await self._write(model, version, server, tuple(samples), source, skipped, actor)

    async def _answer(self, model: str, inputs: Sequence[InputTensor], version: int | None) -> Answer:
        return await self._inference.infer(
            model, inputs, outputs=None, version=version, timeout_seconds=_TIMEOUT_SECONDS
        )

    async def _write(
        self,
        model: str,
        version: int,
        server: str,
        samples: tuple[Sample, ...],
        source: SampleSource,
        skipped: list[str],
        actor: str,
    ) -> RecordResult:
        manifest = await asyncio.to_thread(self._registry.manifest, model, version)
        if manifest.members:
            raise ConflictError(
                f"{model}:{version} is a pipeline, whose answers depend on the versions of its members as well; "
                "publish it with --samples, or record samples of its members",
                model=model,
            )
        triton_version = ""
        if (managed := self._servers.find(server)) is not None:
            with suppress(ControlPlaneError):
                triton_version = await managed.client.server_metadata()
        record = SampleRecord(
            id=uuid.uuid4().hex[:8],
            source=source,
            count=len(samples),
            content=manifest.content_digest,
            server=server,
            triton_version=triton_version,
            at=datetime.now(UTC),
            actor=actor,
        )
        await asyncio.to_thread(self._recorded.put, model, version, record, samples)
        return RecordResult(model, version, record, list(dict.fromkeys(skipped)))


async def _inputs(request: CopiedRequest) -> Tensors:
    if request.grpc:
        return await asyncio.to_thread(inputs_from_grpc, request.body)
    return await asyncio.to_thread(inputs_from_http, request.body, request.head_bytes)


def _tensor(name: str, array: Array) -> InputTensor:
    return InputTensor(name, DataType.of(array), array.shape, array)
