"""The samples of a proof: those of the manifest, and those that were recorded after the publication."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from controlplane.domain.recorded_samples import SampleRecord, SampleSource
from controlplane.domain.samples import Sample
from controlplane.domain.states import Proof
from controlplane.errors import ConflictError, ControlPlaneError, InvalidInputError, StoreError
from controlplane.lifecycle.desired import ACTOR, DesiredStateResolver, PreparedVersion
from controlplane.lifecycle.first_samples import FIRST_ID, first_samples
from controlplane.registry.recorded_samples import RecordedSamples
from controlplane.servers.server import ManagedServer

logger = logging.getLogger(__name__)


class ProofSamples:
    """Reads samples for proofs, and records those of a first deploy.

    Args:
        recorded: The recorded samples.
        desired_state: Source of the samples in manifests.
        records_first: Whether the first answers of a version without golden samples are recorded.
    """

    def __init__(self, recorded: RecordedSamples, desired_state: DesiredStateResolver, *, records_first: bool) -> None:
        self._recorded = recorded
        self._desired_state = desired_state
        self._records_first = records_first

    async def read(self, model: str, prepared: PreparedVersion, *, fresh: bool = False) -> tuple[Sample, ...]:
        """Return the samples of a version.

        Args:
            model: The model.
            prepared: The version.
            fresh: Whether to read which records exist, also if this process knows them.

        Raises:
            ControlPlaneError: The samples cannot be read.
        """

        def blocking() -> tuple[Sample, ...]:
            found = self._recorded.read(model, prepared.target.version, fresh=fresh)
            content = prepared.manifest.content_digest if found else ""
            recorded = (one for record, samples in found if record.content == content for one in samples)
            return (*self._desired_state.samples(prepared), *recorded)

        return await asyncio.to_thread(blocking)

    def hint(self, model: str, prepared: PreparedVersion, samples: tuple[Sample, ...]) -> str:
        """Return what to do about wrong recorded samples; empty if all samples are those of the manifest."""
        golden = prepared.manifest.golden
        if len(samples) == (golden.count if golden else 0):
            return ""
        reference = f"{model}:{prepared.target.version}"
        return f"; `tritonctl samples list {reference}` lists the recorded samples, and `samples rm` removes wrong ones"

    async def record_first(
        self,
        server: ManagedServer,
        model: str,
        triton_name: str,
        prepared: PreparedVersion,
        proof: Proof,
        *,
        timeout_seconds: float,
        permit: Callable[[], None],
    ) -> tuple[Proof, tuple[Sample, ...], int]:
        """Record the answers of a version without samples that is loaded and answers.

        Args:
            server: The server.
            model: The model.
            triton_name: The name that it is loaded under.
            prepared: The version.
            proof: Its proof so far.
            timeout_seconds: Deadline of each request.
            permit: Raises an error if this instance may not write any more.

        Returns:
            The proof, with the recorded samples if there are any; the samples; the number of requests.

        Raises:
            TritonUnavailableError: The server is unavailable.
        """
        if not self._records_first or prepared.manifest.members:
            return proof, (), 0  # the answers of a pipeline depend on the versions of its members as well
        first = await first_samples(server.client, triton_name, prepared, timeout_seconds=timeout_seconds)
        if first.proof is None:
            note = f"{proof.message}; no answers were recorded as golden samples: {first.why_none}"
            return proof.model_copy(update={"message": note}), (), first.requests
        version, triton_version = prepared.target.version, ""
        with suppress(ControlPlaneError):
            triton_version = await server.client.server_metadata()
        record = SampleRecord(
            id=FIRST_ID,
            source=SampleSource.FIRST_DEPLOY,
            count=len(first.samples),
            content=prepared.manifest.content_digest,
            server=server.name,
            triton_version=triton_version,
            at=datetime.now(UTC),
            actor=ACTOR,
        )
        permit()
        try:
            await asyncio.to_thread(self._recorded.put, model, version, record, first.samples)
        except (StoreError, ConflictError, InvalidInputError) as error:
            logger.warning("the first answers of %s:%d could not be recorded: %s", model, version, error)
            return proof, (), first.requests
        return first.proof, first.samples, first.requests
