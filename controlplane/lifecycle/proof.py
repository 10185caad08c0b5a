"""The proof: compares Triton's answers to the golden samples with the recorded outputs."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.comparison import compare, worst
from controlplane.domain.samples import Sample, Tensors
from controlplane.domain.signature import DYNAMIC, DataType, Signature
from controlplane.domain.states import Proof
from controlplane.domain.tolerance import OutputComparison
from controlplane.errors import InferenceError, TritonTimeoutError
from controlplane.lifecycle.desired import PreparedVersion
from controlplane.lifecycle.state import ProofStatus
from controlplane.triton.client import TritonClient

# Triton's message for a Python-based backend whose process died; see docs/internals/triton.md, "Health".
_DEAD = "is not healthy"


async def prove(
    client: TritonClient,
    triton_name: str,
    prepared: PreparedVersion,
    samples: tuple[Sample, ...],
    *,
    timeout_seconds: float,
) -> tuple[ProofStatus, Proof, int]:
    """Send every golden sample to a loaded version, addressed by its number, and compare the answers.

    A version without golden samples has no recorded answers. It passes if Triton reports it ready and its process
    answers a generated request, even with an error.

    Args:
        client: The server.
        triton_name: The name it is loaded under.
        prepared: The version.
        samples: Its golden samples.
        timeout_seconds: Deadline of each inference.

    Returns:
        The verdict, the proof, and the number of requests that it took.

    Raises:
        TritonUnavailableError: The server is unavailable; that says nothing about the version.
    """
    if not samples:
        return await _smoke(client, triton_name, prepared, timeout_seconds)
    version = prepared.target.version
    golden = prepared.manifest.golden
    tolerances = golden.tolerances if golden else {}
    limit = int(prepared.config.get("max_batch_size", 0))
    comparisons: list[OutputComparison] = []
    spent, requests = 0.0, 0
    for number, sample in enumerate(samples):
        parts: list[Tensors] = []
        for inputs in chunks(sample.inputs, limit):
            began = time.monotonic()
            try:
                outputs = await _ask(client, triton_name, inputs, prepared, timeout_seconds)
            except (InferenceError, TritonTimeoutError) as error:
                mark = ProofStatus.TIMED_OUT if isinstance(error, TritonTimeoutError) else ProofStatus.UNRESPONSIVE
                message = f"golden sample {number} was not answered: {error}"
                return mark, _proof(version, False, spent, requests, number, comparisons, message), requests + 1
            spent, requests = spent + time.monotonic() - began, requests + 1
            parts.append(outputs)
        comparisons.extend(compare(_joined(parts), sample.outputs, tolerances))
    joined = worst(tuple(comparisons))
    wrong = [comparison.reason for comparison in joined if not comparison.agrees]
    if not wrong and "dynamic_batching" in prepared.config and prepared.manifest.rows_independent is None:
        problem, asked = await _rows_alone(client, triton_name, prepared, samples, timeout_seconds)
        requests += asked
        if problem:
            return (
                ProofStatus.MISMATCH,
                _proof(version, False, spent, requests, len(samples), list(joined), problem),
                requests,
            )
    message = f"Triton's answer differs from the recorded one: {'; '.join(wrong)}" if wrong else ""
    proof = _proof(version, not wrong, spent, requests, len(samples), list(joined), message)
    return (ProofStatus.MISMATCH if wrong else ProofStatus.PASSED), proof, requests


async def _rows_alone(
    client: TritonClient,
    triton_name: str,
    prepared: PreparedVersion,
    samples: tuple[Sample, ...],
    timeout_seconds: float,
) -> tuple[str, int]:
    """Send the first and the last row of a sample alone, for a version whose rows were not compared at publication.

    Returns:
        Why the rows are not independent, empty if they are or no sample has two rows; and the number of requests.
    """
    sample = next((one for one in samples if next(iter(one.inputs.values())).shape[:1] > (1,)), None)
    if sample is None:
        return "", 0
    golden = prepared.manifest.golden
    rows = next(iter(sample.inputs.values())).shape[0]
    for number, row in enumerate((slice(0, 1), slice(rows - 1, rows))):
        inputs = {name: array[row] for name, array in sample.inputs.items()}
        try:
            outputs = await _ask(client, triton_name, inputs, prepared, timeout_seconds)
        except (InferenceError, TritonTimeoutError) as error:
            return f"a single row of a golden sample was not answered: {error}", number + 1
        recorded = {name: array[row] for name, array in sample.outputs.items()}
        compared = compare(outputs, recorded, golden.tolerances if golden else {})
        if wrong := [comparison.reason for comparison in compared if not comparison.agrees]:
            return (
                f"a row gets a different answer alone than in a batch of {rows} rows, as dynamic batching forms them: "
                f"{'; '.join(wrong)}; remove dynamic_batching",
                number + 1,
            )
    return "", 2


def smallest(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """Return only the sample with the fewest input bytes; empty if there are no samples."""
    if not samples:
        return ()
    return (min(samples, key=lambda sample: sum(array.nbytes for array in sample.inputs.values())),)


async def _ask(
    client: TritonClient, triton_name: str, inputs: Tensors, prepared: PreparedVersion, timeout_seconds: float
) -> Tensors:
    """Send a request, and retry it once if Triton fails it: a single failed request does not mean a broken model."""
    version, config = prepared.target.version, prepared.config
    try:
        outputs, _ = await client.infer(triton_name, inputs, version=version, timeout=timeout_seconds, config=config)
    except InferenceError as error:
        if _DEAD in error.message:
            raise
        outputs, _ = await client.infer(triton_name, inputs, version=version, timeout=timeout_seconds, config=config)
    return outputs


async def _smoke(
    client: TritonClient, triton_name: str, prepared: PreparedVersion, timeout_seconds: float
) -> tuple[ProofStatus, Proof, int]:
    version = prepared.target.version
    if not await client.ready(triton_name, version):
        message = f"Triton reports that version {version} is not ready"
        return ProofStatus.UNRESPONSIVE, _proof(version, False, 0.0, 0, 0, [], message), 0
    note = "no golden samples: proved only that it is ready"
    signature = prepared.manifest.signature
    if signature is None:
        return ProofStatus.PASSED, _proof(version, True, 0.0, 0, 0, [], note), 0
    began = time.monotonic()
    try:
        await client.infer(
            triton_name, _generated(signature), version=version, timeout=timeout_seconds, config=prepared.config
        )
    except TritonTimeoutError as error:
        return (
            ProofStatus.TIMED_OUT,
            _proof(version, False, 0.0, 0, 0, [], f"a generated request was not answered: {error}"),
            1,
        )
    except InferenceError as error:
        if _DEAD in error.message:
            return (
                ProofStatus.UNRESPONSIVE,
                _proof(version, False, 0.0, 0, 0, [], f"a generated request failed: {error}"),
                1,
            )
        # Zeros need not be a valid input; a model that rejects them is alive.
        note += f" (a generated request was refused: {error})"
    else:
        note += " and answers a generated request"
    return ProofStatus.PASSED, _proof(version, True, time.monotonic() - began, 1, 0, [], note), 1


def _proof(
    version: int,
    agrees: bool,
    spent: float,
    requests: int,
    samples: int,
    outputs: list[OutputComparison],
    message: str,
) -> Proof:
    return Proof(
        version=version,
        agrees=agrees,
        at=datetime.now(UTC),
        latency_seconds=spent / requests if requests else 0.0,
        samples=samples,
        outputs=worst(tuple(outputs)),
        message=message,
    )


def _generated(signature: Signature) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for spec in signature.inputs:
        shape = tuple(1 if size == DYNAMIC else size for size in spec.shape)
        if spec.dtype is DataType.BYTES:
            tensors[spec.name] = np.full(shape, b"", dtype=object)
        else:
            tensors[spec.name] = np.zeros(shape, dtype=spec.dtype.numpy)
    return tensors


def chunks(inputs: Tensors, limit: int) -> Iterator[Tensors]:
    """Split a sample that exceeds the deployment's maximum batch size; the rows of a batch are independent."""
    rows = next(iter(inputs.values())).shape[0] if limit > 0 else 0
    if rows <= limit:
        yield inputs
        return
    for start in range(0, rows, limit):
        yield {name: array[start : start + limit] for name, array in inputs.items()}


def _joined(parts: list[Tensors]) -> Tensors:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
