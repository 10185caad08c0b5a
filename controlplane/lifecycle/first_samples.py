"""Golden samples of a version that was published without any: the answers of its first proof (trust on first use).

The answers say nothing about whether the version is right. They make every later proof a comparison: after another
load, on another server, with another Triton, the version must answer as it did the first time.
"""

from dataclasses import dataclass

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.samples import Sample
from controlplane.domain.signature import DYNAMIC, DataType, Signature
from controlplane.domain.states import Proof
from controlplane.errors import InferenceError, TritonTimeoutError
from controlplane.lifecycle.desired import PreparedVersion
from controlplane.lifecycle.proof import prove
from controlplane.lifecycle.state import ProofStatus
from controlplane.triton.client import TritonClient

FIRST_ID = "first-deploy"
_COUNT = 3
_DYNAMIC_SIZES = (1, 1, 8)
_INPUT_BYTES_MAX = 4 * 1024 * 1024
_SECONDS = 5.0
"""A model that needs longer for a generated request gets no samples: a deployment must not wait for them."""


@dataclass(frozen=True, slots=True)
class FirstSamples:
    """What a version answered to generated inputs.

    Attributes:
        samples: The inputs that it accepted, with its answers; empty if nothing can be recorded.
        proof: The proof that it answers them alike a second time; None if nothing can be recorded.
        why_none: Why nothing can be recorded.
        requests: Number of requests that were sent.
    """

    samples: tuple[Sample, ...] = ()
    proof: Proof | None = None
    why_none: str = ""
    requests: int = 0


async def first_samples(
    client: TritonClient, triton_name: str, prepared: PreparedVersion, *, timeout_seconds: float
) -> FirstSamples:
    """Ask a loaded version twice, and return its answers if they are the same both times.

    A version that does not answer one of the generated requests in time is not asked again: it may wait for something
    that only a client sends.

    Raises:
        TritonUnavailableError: The server is unavailable.
    """
    signature = prepared.manifest.signature
    if signature is None:
        return FirstSamples(why_none="its configuration declares no tensors")
    found, refusal, requests = [], "", 0
    seconds = min(_SECONDS, timeout_seconds)
    for inputs in generated_inputs(signature):
        requests += 1
        try:
            outputs, _ = await client.infer(
                triton_name,
                inputs,
                version=prepared.target.version,
                timeout=seconds,
                config=prepared.config,
            )
        except TritonTimeoutError:
            why = f"it did not answer a generated request within {seconds:g} s"
            return FirstSamples(why_none=why, requests=requests)
        except InferenceError as error:
            refusal = str(error)
            continue
        if outputs:
            found.append(Sample(inputs, outputs))
    if not found:
        why = f"it refuses generated requests: {refusal}" if refusal else "it gives no outputs to generated requests"
        return FirstSamples(why_none=why, requests=requests)
    samples = tuple(found)
    mark, proof, asked = await prove(client, triton_name, prepared, samples, timeout_seconds=seconds)
    if mark is not ProofStatus.PASSED:
        unlike = mark is ProofStatus.MISMATCH
        why = "it answers the same request differently each time" if unlike else "it did not answer a second time"
        return FirstSamples(why_none=why, requests=requests + asked)
    return FirstSamples(samples, proof, requests=requests + asked)


def generated_inputs(signature: Signature) -> list[dict[str, Array]]:
    """Return inputs that fit a signature: zeros, then random values; always the same for a signature."""
    random = np.random.default_rng(0)
    found = []
    for number in range(_COUNT):
        inputs = {}
        for spec in signature.inputs:
            sizes = [_DYNAMIC_SIZES[number] if size == DYNAMIC else size for size in spec.shape]
            if signature.batched:
                sizes[0] = 1
            inputs[spec.name] = _values(spec.dtype, tuple(sizes), random if number else None)
        if sum(array.nbytes for array in inputs.values()) <= _INPUT_BYTES_MAX:
            found.append(inputs)
    return found


def _values(dtype: DataType, shape: tuple[int, ...], random: np.random.Generator | None) -> Array:
    if dtype is DataType.BYTES:
        text = b"" if random is None else bytes(random.integers(97, 123, size=6, dtype=np.uint8))
        return np.full(shape, text, dtype=object)
    if random is None:
        return np.zeros(shape, dtype=dtype.numpy)
    if dtype.is_float:
        return random.standard_normal(shape).astype(dtype.numpy)
    return random.integers(0, 2, size=shape).astype(dtype.numpy)
