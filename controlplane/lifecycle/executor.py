"""Performs one action on one server, with deadlines, and reports the outcome. Decides nothing."""

import asyncio
import contextvars
import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from controlplane import tracing
from controlplane.domain.names import candidate_name
from controlplane.domain.report import Verdict, VersionReport
from controlplane.domain.samples import Sample
from controlplane.domain.states import Phase, Proof
from controlplane.errors import ControlPlaneError, InvalidArtifactError, TritonError
from controlplane.lifecycle.actions import Action, CleanUp, Load, Prove, Stage, Term, Unload, Wait
from controlplane.lifecycle.desired import DesiredStateResolver, PreparedVersion
from controlplane.lifecycle.proof import prove, smallest
from controlplane.lifecycle.proof_samples import ProofSamples
from controlplane.lifecycle.qualification import QualificationSpec, artifact_check, qualify
from controlplane.lifecycle.staging import Staging
from controlplane.lifecycle.state import ProofStatus
from controlplane.lifecycle.traffic import DirectTraffic, TrafficDrainer
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.servers.snapshot import fingerprint
from controlplane.triton.instance_groups import Gpus, on_gpus
from controlplane.triton.repository import timed

logger = logging.getLogger(__name__)

Progress = Callable[[Phase], None]
_SWEEP_SECONDS = 5.0
"""Time in which the processes that a reload replaces may exit on their own."""
_FETCHES = 4
"""Number of versions that are fetched and staged concurrently."""


class NotLeaderError(ControlPlaneError):
    """The lease ended before a step that would have changed something."""


class _Permit:
    """The permission to act under which an action began. Thread-safe."""

    def __init__(self, term: Callable[[], Term | None]) -> None:
        self._term = term
        self._began = term()

    def check(self) -> None:
        """Return if the permission still holds.

        Raises:
            NotLeaderError: The permission ended, even if it was granted again since.
        """
        if self._began is None or self._term() != self._began:
            raise NotLeaderError(
                "this instance lost its lease or its connection to the store during the action; "
                "the action is planned again"
            )


@dataclass
class Outcome:
    """Result of an action.

    Attributes:
        action: The action.
        seconds: Time spent, by stage: fetch, stage, load, prove, switch, unload.
        error: Why the action failed; None if it succeeded.
        mark: Result of a proof; None if there was no proof.
        proof: The proof.
        requests: How many requests the proof took.
        gpus: The GPUs that a load requested; None if it left the choice to Triton.
        fingerprint: Fingerprint of the configuration that Triton reported right after a load; empty if it reported
            none.
        report: Qualification report of the version; None if there was no qualification.
        peer_requests: How many requests the qualification sent to the active version.
        repaired: Damage to staged files that was found and repaired before a load.
    """

    action: Action
    seconds: dict[str, float] = field(default_factory=dict)
    error: ControlPlaneError | None = None
    mark: ProofStatus | None = None
    proof: Proof | None = None
    requests: int = 0
    gpus: Gpus | None = None
    fingerprint: str = ""
    report: VersionReport | None = None
    peer_requests: int = 0
    repaired: list[str] = field(default_factory=list)


class Executor:
    """Performs actions.

    Args:
        registry: Source of files and samples.
        desired_state: Source of golden samples.
        term: See `Authority.term`; compared with its value at the start of the action right before any change.
        proof_timeout_seconds: Deadline of one golden sample.
        records_first: Whether the first answers of a version without golden samples are recorded.

    Attributes:
        traffic: Drains traffic from the servers.
    """

    def __init__(
        self,
        registry: Registry,
        desired_state: DesiredStateResolver,
        *,
        term: Callable[[], Term | None],
        proof_timeout_seconds: float,
        records_first: bool = True,
    ) -> None:
        self._samples = ProofSamples(registry.recorded, desired_state, records_first=records_first)
        self._registry = registry
        self._desired_state = desired_state
        self._staging = Staging(registry, desired_state)
        self._term = term
        self._proof_timeout = proof_timeout_seconds
        self.traffic: TrafficDrainer = DirectTraffic()
        self._sweeps: set[asyncio.Task[None]] = set()
        # A separate thread pool, so that downloads of many gigabytes do not block other users of the default pool.
        self._threads = ThreadPoolExecutor(_FETCHES, thread_name_prefix="stage")

    def close(self) -> None:
        """Start no more work; fetches in progress end on their own."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for sweep in self._sweeps:
            sweep.cancel()

    async def run(
        self,
        server: ManagedServer,
        model: str,
        action: Action,
        prepared: PreparedVersion | None,
        progress: Progress,
        exam: QualificationSpec | None = None,
        gpus: Gpus | None = None,
    ) -> Outcome:
        """Perform an action.

        Args:
            server: The server to act on.
            model: The model's name.
            action: The action.
            prepared: The prepared version of the action's target, if the current desired state contains it.
            progress: Called when a stage begins.
            exam: What a proof checks besides the answers; None for nothing.
            gpus: The GPUs that the target is to use on this server; None leaves the choice to Triton.
        """
        outcome = Outcome(action, gpus=gpus)
        with tracing.below(
            f"reconcile {type(action).__name__.lower()}", parent=tracing.carried(model), model=model, server=server.name
        ):
            await self._run(server, model, action, prepared, outcome, progress, exam)
        if isinstance(action, Prove) and not action.candidate and outcome.mark is ProofStatus.PASSED:
            tracing.done(model)  # the model is ready: later actions are not part of the request
        return outcome

    async def _run(
        self,
        server: ManagedServer,
        model: str,
        action: Action,
        prepared: PreparedVersion | None,
        outcome: Outcome,
        progress: Progress,
        exam: QualificationSpec | None,
    ) -> None:
        permit = _Permit(self._term)
        try:
            match action:
                case Stage():
                    await self._stage(server, model, action, _needed(prepared, action), outcome, progress, permit)
                case Load():
                    await self._load(server, model, action, prepared, outcome, permit)
                case Prove():
                    await self._prove(server, model, action, _needed(prepared, action), outcome, exam, permit)
                case Unload(candidate=True):
                    permit.check()
                    # Only open sequences can need it: other requests in flight are answered before Triton unloads it.
                    sequences = self._desired_state.takes_sequences(model)
                    drained = self.traffic.withdrawn(server.name, candidate_name(model)) if sequences else nullcontext()
                    async with drained:
                        permit.check()
                        with timed(outcome.seconds, "unload"):
                            await server.client.unload(candidate_name(model))
                case Unload():
                    permit.check()
                    async with self.traffic.withdrawn(server.name, model):
                        permit.check()
                        with timed(outcome.seconds, "unload"):
                            await server.client.unload(model)
                case CleanUp():
                    permit.check()
                    await asyncio.to_thread(_clean_up, server, model, action, permit)
                case Wait():
                    pass
        except ControlPlaneError as error:
            outcome.error = error
        except OSError as error:
            outcome.error = ControlPlaneError(f"{type(action).__name__} of {model} failed: {error}")

    async def _stage(
        self,
        server: ManagedServer,
        model: str,
        action: Stage,
        prepared: PreparedVersion,
        outcome: Outcome,
        progress: Progress,
        permit: _Permit,
    ) -> None:
        permit.check()
        loop = asyncio.get_running_loop()
        name = candidate_name(model) if action.candidate else model
        artifact = await asyncio.to_thread(artifact_check, server, prepared)
        if artifact.verdict is Verdict.FAILED:
            raise InvalidArtifactError(artifact.message, model=model, version=prepared.target.version)

        def fetched() -> None:
            loop.call_soon_threadsafe(progress, Phase.STAGING)
            permit.check()

        def fetch_and_stage() -> None:
            outcome.seconds |= server.repository.install(
                name,
                prepared.target.version,
                prepared.manifest,
                on_gpus(prepared.config_for(name, [prepared.target.version]), outcome.gpus),
                self._staging.warmup(prepared),
                self._registry.checkout,
                fetched,
            )

        await loop.run_in_executor(self._threads, contextvars.copy_context().run, fetch_and_stage)

    async def _load(
        self,
        server: ManagedServer,
        model: str,
        action: Load,
        prepared: PreparedVersion | None,
        outcome: Outcome,
        permit: _Permit,
    ) -> None:
        name = candidate_name(model) if action.candidate else model
        prepared = prepared or await self._earlier(model, action)
        config = (
            await _present_config(server, name, action.versions)
            if prepared is None
            else on_gpus(prepared.config_for(name, action.versions), outcome.gpus)
        )
        permit.check()
        outcome.repaired = await asyncio.to_thread(
            self._staging.make_ready, server.repository, name, model, action.versions, prepared, config
        )
        permit.check()
        if action.reload:
            # Triton ignores a load that changes nothing. A newer version folder on disk counts as a change;
            # a newer config.pbtxt does not, because the load carries its configuration.
            await asyncio.to_thread(server.repository.renew, name, action.versions)
        replaced = server.embedded.processes_of(name) if action.reload and server.embedded else []
        permit.check()
        with timed(outcome.seconds, "switch" if action.switch else "load"):
            await server.client.load(name, config)
        if not action.candidate:
            with suppress(ControlPlaneError):
                outcome.fingerprint = fingerprint(await server.client.model_config(name, max(action.versions)))
        if replaced:
            sweep = asyncio.create_task(_sweep(server, name, replaced), name=f"sweep {name}")
            self._sweeps.add(sweep)
            sweep.add_done_callback(self._sweeps.discard)

    async def _earlier(self, model: str, action: Load) -> PreparedVersion | None:
        """Return the target of an earlier revision that a load keeps; None if it cannot be found now."""
        with suppress(ControlPlaneError):
            return await asyncio.to_thread(self._desired_state.earlier, model, action.target)
        return None

    async def _prove(
        self,
        server: ManagedServer,
        model: str,
        action: Prove,
        prepared: PreparedVersion,
        outcome: Outcome,
        exam: QualificationSpec | None,
        permit: _Permit,
    ) -> None:
        name = candidate_name(model) if action.candidate else model
        samples = await self._samples.read(model, prepared, fresh=not action.light)
        sent = smallest(samples) if action.light else samples
        with timed(outcome.seconds, "prove"):
            outcome.mark, proof, outcome.requests = await prove(
                server.client, name, prepared, sent, timeout_seconds=self._proof_timeout
            )
            if outcome.mark is ProofStatus.PASSED and not samples and not action.light:
                proof, sent, asked = await self._samples.record_first(
                    server,
                    model,
                    name,
                    prepared,
                    proof,
                    timeout_seconds=self._proof_timeout,
                    permit=permit.check,
                )
                outcome.requests += asked
            elif outcome.mark is ProofStatus.MISMATCH:
                hint = self._samples.hint(model, prepared, samples)
                proof = proof.model_copy(update={"message": f"{proof.message}{hint}"})
        outcome.proof, samples = proof, sent
        if exam is not None:
            with timed(outcome.seconds, "examine"):
                await self._examine(server, model, action, prepared, samples, outcome, exam)

    async def _examine(
        self,
        server: ManagedServer,
        model: str,
        action: Prove,
        prepared: PreparedVersion,
        samples: tuple[Sample, ...],
        outcome: Outcome,
        exam: QualificationSpec,
    ) -> None:
        mark, proof = outcome.mark, outcome.proof
        assert mark is not None
        assert proof is not None
        name = candidate_name(model) if action.candidate else model
        peer_samples = await self._samples.read(model, exam.peer) if exam.peer is not None else ()
        outcome.report, requests, outcome.peer_requests = await qualify(
            server,
            model,
            (name, prepared, samples),
            replace(exam, gpus=outcome.gpus),
            peer_samples,
            (mark, proof),
            self._proof_timeout,
        )
        outcome.requests += requests
        failed = [check.message for check in outcome.report.checks if check.verdict is Verdict.FAILED]
        if mark is ProofStatus.PASSED and failed:
            outcome.mark = ProofStatus.REGRESSED
            outcome.proof = proof.model_copy(update={"agrees": False, "message": "; ".join(failed)})


def _needed(prepared: PreparedVersion | None, action: Stage | Prove) -> PreparedVersion:
    if prepared is None:
        raise TritonError(f"cannot handle version {action.target.version}: its configuration is unknown")
    return prepared


async def _sweep(server: ManagedServer, name: str, replaced: list[int]) -> None:
    """Kill processes that a reload should have ended.

    If an inference failed on the dead process of one instance, Triton (2.51) never releases the other instances that
    were loaded with it: they stay, with their memory, and receive no requests.
    """
    await asyncio.sleep(_SWEEP_SECONDS)
    assert server.embedded is not None
    present, old = set(server.embedded.processes_of(name)), set(replaced)
    if not present - old:
        return  # no new processes started, so the old ones still answer
    for process in present & old:
        logger.warning("%s: killing process %d of %s, which the reload should have ended", server.name, process, name)
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


async def _present_config(server: ManagedServer, name: str, versions: tuple[int, ...]) -> dict[str, Any]:
    """Return Triton's current configuration of a model with another version policy, for a version that no revision has.

    The result contains fields that Triton filled in and the load did not send, so Triton loads the versions again.
    """
    config = await server.client.model_config(name, versions[-1])
    return {**config, "name": name, "version_policy": {"specific": {"versions": list(versions)}}}


def _clean_up(server: ManagedServer, model: str, action: CleanUp, permit: _Permit) -> None:
    if action.candidate:
        permit.check()
        server.repository.remove_model(candidate_name(model))
    if action.model:
        permit.check()
        server.repository.remove_model(model)
    for version in action.versions:
        permit.check()
        server.repository.remove_version(model, version)
