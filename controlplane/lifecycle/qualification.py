"""Qualifies a version before it receives traffic: artifact, configuration, numbers and performance.

The performance check alternates requests to the new version and to the active version, one at a time, so that other
load on the machine affects both measurements.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.domain.health import percentile
from controlplane.domain.portability import Loads, ModelFacts, check
from controlplane.domain.report import Performance, ReportCheck, Verdict, VersionReport, regressions, worst_of
from controlplane.domain.samples import Sample, Tensors
from controlplane.domain.states import Proof
from controlplane.errors import InferenceError, NotFoundError, TritonTimeoutError
from controlplane.lifecycle.desired import PreparedVersion
from controlplane.lifecycle.proof import chunks, smallest
from controlplane.lifecycle.state import ProofStatus
from controlplane.servers.requirements import missing_for
from controlplane.servers.server import ManagedServer
from controlplane.servers.target import target_of
from controlplane.triton.config_json import differences
from controlplane.triton.embedded.opsets import newest_opset
from controlplane.triton.instance_groups import Gpus, on_gpus

_WARM_UPS = 2
_ROUNDS = 50
_SECONDS = 0.3
_ASKED_SECONDS = 10.0
"""Maximum time for measurements: `_SECONDS` for information only, `_ASKED_SECONDS` if the deployment sets a bound."""
_FEWEST = 5
"""Minimum number of requests for reporting a regression."""


@dataclass(frozen=True, slots=True)
class QualificationSpec:
    """Parameters of a qualification.

    Attributes:
        peer: The active version; None if there is none.
        max_latency_ratio: The deployment's bound; None for no bound.
        max_memory_ratio: Likewise.
        gpus: The GPUs that the load requested; None if it left the choice to Triton.
    """

    peer: PreparedVersion | None
    max_latency_ratio: float | None = None
    max_memory_ratio: float | None = None
    gpus: Gpus | None = None


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """A version and the request that measures it.

    Attributes:
        name: Its name in Triton.
        prepared: The version.
        inputs: The request.
    """

    name: str
    prepared: PreparedVersion
    inputs: Tensors

    @classmethod
    def of(
        cls, name: str, prepared: PreparedVersion, samples: tuple[Sample, ...], limits: Iterable[int]
    ) -> "ProbeTarget | None":
        """Return a target with the smallest sample, cut to the batch limit; None if there are no samples."""
        if not samples:
            return None
        (sample,) = smallest(samples)
        limit = min((limit for limit in limits if limit > 0), default=0)
        return cls(name, prepared, next(chunks(sample.inputs, limit)))


def _both(
    model: str,
    ours: tuple[str, PreparedVersion, tuple[Sample, ...]],
    peer: PreparedVersion | None,
    peer_samples: tuple[Sample, ...],
) -> tuple[ProbeTarget | None, ProbeTarget | None]:
    """Return the targets for a version and the active one, with the same request if their signatures are equal."""
    name, prepared, samples = ours
    limits = [int(one.config.get("max_batch_size", 0)) for one in (prepared, peer) if one is not None]
    mine = ProbeTarget.of(name, prepared, samples, limits)
    if mine is None or peer is None:
        return mine, None
    if peer.manifest.signature == prepared.manifest.signature:
        return mine, ProbeTarget(model, peer, mine.inputs)
    return mine, ProbeTarget.of(model, peer, peer_samples, limits[1:])


async def qualify(
    server: ManagedServer,
    model: str,
    ours: tuple[str, PreparedVersion, tuple[Sample, ...]],
    exam: QualificationSpec,
    peer_samples: tuple[Sample, ...],
    proved: tuple[ProofStatus, Proof],
    timeout_seconds: float,
) -> tuple[VersionReport, int, int]:
    """Qualify a loaded version.

    Args:
        server: The server.
        model: The model's own name.
        ours: The version's name in Triton, the version, and its golden samples.
        exam: The parameters.
        peer_samples: The golden samples of the active version.
        proved: The result of its proof.
        timeout_seconds: Deadline of each request.

    Returns:
        The report, and the number of requests sent to the version and to the active version.

    Raises:
        TritonUnavailableError: The server is unavailable; that says nothing about the version.
    """
    name, prepared, _ = ours
    mark, proof = proved
    checks = [
        artifact_check(server, prepared),
        await _configuration(server, name, prepared, exam.gpus),
        _numbers(mark, proof),
    ]
    asked = peer = 0
    if mark is ProofStatus.PASSED:
        mine, other = _both(model, ours, exam.peer, peer_samples)
        check, asked, peer = await _performance(server, mine, other, exam, timeout_seconds)
        checks.append(check)
    report = VersionReport(
        model=model,
        version=prepared.target.version,
        at=datetime.now(UTC),
        server=server.name,
        config_digest=prepared.target.digest,
        verdict=worst_of(tuple(checks)),
        checks=tuple(checks),
    )
    return report, asked, peer


def artifact_check(server: ManagedServer, prepared: PreparedVersion) -> ReportCheck:
    """Return the check of the artifact, including whether the server has its backend and loads it."""
    manifest = prepared.manifest
    opset, known = manifest.attributes.get("opset"), newest_opset() if server.embedded is not None else None
    count = len(manifest.files)
    files = f"{count} file{'s' * (count > 1)}, {manifest.size_bytes} bytes, verified by SHA-256 when they were fetched"
    details = {"format": manifest.format.value, "opset": opset, "newest_opset_of_backend": known}
    what = f"{manifest.format.value}: {files}"
    if missing := missing_for(manifest, server):
        return ReportCheck(name="artifact", verdict=Verdict.FAILED, message=missing, details=details)
    if server.embedded is not None:
        found = check(ModelFacts.of_manifest(manifest), target_of(server, ""))
        details["loads"] = found.loads.value
        if found.loads is Loads.NO:
            message = f"{found.runs} cannot load the model: {'; '.join(found.reasons)}"
            return ReportCheck(name="artifact", verdict=Verdict.FAILED, message=message, details=details)
    if not isinstance(opset, int) or manifest.backend != "onnxruntime":
        return ReportCheck(name="artifact", verdict=Verdict.PASSED, message=what, details=details)
    if known is not None and opset > known:
        message = f"the model uses opset {opset}, and this server's ONNX Runtime supports opsets up to {known}"
        return ReportCheck(name="artifact", verdict=Verdict.FAILED, message=message, details=details)
    what += f"; opset {opset}" + (f" (the backend supports up to {known})" if known is not None else "")
    return ReportCheck(name="artifact", verdict=Verdict.PASSED, message=what, details=details)


async def _configuration(server: ManagedServer, name: str, prepared: PreparedVersion, gpus: Gpus | None) -> ReportCheck:
    try:
        present = await server.client.model_config(name, prepared.target.version)
    except NotFoundError as error:
        return ReportCheck(name="configuration", verdict=Verdict.SKIPPED, message=str(error))
    found = differences(on_gpus(prepared.config, gpus), present)
    if not found:
        message = "Triton runs it with the requested configuration"
        return ReportCheck(name="configuration", verdict=Verdict.PASSED, message=message)
    message = "Triton's configuration differs from the requested one: " + "; ".join(found)
    return ReportCheck(
        name="configuration", verdict=Verdict.WARNING, message=message, details={"differences": list(found)}
    )


def _numbers(mark: ProofStatus, proof: Proof) -> ReportCheck:
    details = {
        one.output: {"max_absolute_error": one.max_absolute_error, "max_relative_error": one.max_relative_error}
        for one in proof.outputs
    }
    if mark is not ProofStatus.PASSED:
        return ReportCheck(name="numbers", verdict=Verdict.FAILED, message=proof.message, details=dict(details))
    if not proof.samples:
        return ReportCheck(name="numbers", verdict=Verdict.SKIPPED, message=proof.message)
    message = f"{proof.samples} golden sample{'s' * (proof.samples > 1)} answered as recorded"
    return ReportCheck(name="numbers", verdict=Verdict.PASSED, message=message, details=dict(details))


async def _performance(
    server: ManagedServer,
    mine: ProbeTarget | None,
    other: ProbeTarget | None,
    exam: QualificationSpec,
    timeout_seconds: float,
) -> tuple[ReportCheck, int, int]:
    name = "performance"
    if mine is None:
        return ReportCheck(name=name, verdict=Verdict.SKIPPED, message="no golden samples to send"), 0, 0
    bounded = other is not None and (exam.max_latency_ratio is not None or exam.max_memory_ratio is not None)
    try:
        times = await _time(server, mine, other, _ASKED_SECONDS if bounded else _SECONDS, timeout_seconds)
    except (InferenceError, TritonTimeoutError) as error:
        return (
            ReportCheck(name=name, verdict=Verdict.WARNING, message=f"failed to measure the latency: {error}"),
            0,
            0,
        )
    memory = server.embedded.instances() if server.embedded is not None else {}
    ours = _performed(mine, times[0], memory)
    asked, timing = (
        len(times[0]) + _WARM_UPS,
        f"median {ours.p50_seconds * 1000:.3g} ms, p99 {ours.p99_seconds * 1000:.3g} ms",
    )
    if other is None:
        message = f"{timing} over {ours.requests} requests; no active version to compare with"
        details = {"version": ours.model_dump(mode="json")}
        return ReportCheck(name=name, verdict=Verdict.PASSED, message=message, details=details), asked, 0
    previous = _performed(other, times[1], memory)
    details = {"version": ours.model_dump(mode="json"), "previous": previous.model_dump(mode="json")}
    found = regressions(ours, previous, exam.max_latency_ratio, exam.max_memory_ratio)
    if found and len(times[0]) >= _FEWEST:
        check = ReportCheck(name=name, verdict=Verdict.FAILED, message="; ".join(found), details=details)
        return check, asked, len(times[1]) + _WARM_UPS
    message = (
        f"{timing}; version {previous.version}, measured alternately: median {previous.p50_seconds * 1000:.3g} ms, "
    )
    message += f"p99 {previous.p99_seconds * 1000:.3g} ms"
    if ours.process_bytes and previous.process_bytes:
        message += f"; {ours.process_bytes / 2**20:.0f} MiB per process, was {previous.process_bytes / 2**20:.0f} MiB"
    check = ReportCheck(name=name, verdict=Verdict.PASSED, message=message, details=details)
    return check, asked, len(times[1]) + _WARM_UPS


async def _time(
    server: ManagedServer, mine: ProbeTarget, other: ProbeTarget | None, seconds: float, timeout_seconds: float
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    end = time.monotonic() + seconds
    for turn in range(_WARM_UPS + _ROUNDS):
        for kept, asked in zip(times, (mine, other), strict=True):
            if asked is None:
                continue
            began = time.monotonic()
            await server.client.infer(
                asked.name,
                asked.inputs,
                version=asked.prepared.target.version,
                timeout=timeout_seconds,
                config=asked.prepared.config,
            )
            if turn >= _WARM_UPS:
                kept.append(time.monotonic() - began)
        if turn > _WARM_UPS and time.monotonic() > end:
            break
    return times


def _performed(asked: ProbeTarget, times: list[float], memory: Mapping[tuple[str, int], object]) -> Performance:
    version = asked.prepared.target.version
    instance = memory.get((asked.name, version))
    processes, resident = getattr(instance, "processes", 0), getattr(instance, "resident_bytes", 0)
    return Performance(
        version=version,
        requests=len(times),
        p50_seconds=percentile(times, 0.5) or 0.0,
        p99_seconds=percentile(times, 0.99) or 0.0,
        process_bytes=resident // processes if processes else None,
    )
