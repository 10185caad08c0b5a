"""Reads from a request which sequence it belongs to, over HTTP and gRPC. Pure.

Clients send what they send to Triton: the parameters ``sequence_id``, ``sequence_start`` and ``sequence_end``. In a
``generate`` request they may also be fields of the body itself.
"""

import json
import zlib
from collections.abc import Sequence
from typing import Any

from controlplane.gateway.grpc_wire import spans
from controlplane.gateway.sequences import SequenceStep
from controlplane.triton.requests import PARAMETERS, all_parameters_of
from controlplane.triton.wire import HEAD_LENGTH

_ID, _START, _END = "sequence_id", "sequence_start", "sequence_end"
_ZLIB_OR_GZIP = 47
"""zlib's window size that accepts both containers (https://zlib.net/manual.html, inflateInit2)."""


def http_step(headers: Sequence[tuple[bytes, bytes]], body: bytes, *, inflated_max: int) -> SequenceStep | None:
    """Return the sequence that an HTTP request belongs to; None if it names none, or cannot be read.

    Triton refuses what cannot be read here.

    Args:
        headers: The request's headers.
        body: Its body.
        inflated_max: Bytes of a compressed body that are read.
    """
    found = {name.lower(): value for name, value in headers}
    if found.get(b"content-encoding", b"identity").strip() in (b"gzip", b"deflate"):
        try:
            body = zlib.decompressobj(_ZLIB_OR_GZIP).decompress(body, inflated_max)
        except zlib.error:
            return None
    length = found.get(HEAD_LENGTH.encode(), b"").decode("latin-1")
    head = body[: int(length)] if length.isdigit() else body
    if _ID.encode() not in head:  # avoids parsing megabytes of JSON in vain
        return None
    try:
        content = json.loads(head)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    parameters = content.get("parameters")
    return _step({**content, **(parameters if isinstance(parameters, dict) else {})})


def grpc_step(message: bytes) -> SequenceStep | None:
    """Return the sequence that a ``ModelInferRequest`` belongs to; None if it names none.

    Raises:
        InvalidInputError: The request's fields or parameters cannot be read.
    """
    if _ID.encode() not in message:
        return None
    return _step(all_parameters_of(b"".join(spans(message, PARAMETERS))))


def _step(values: dict[str, Any]) -> SequenceStep | None:
    name = values.get(_ID)
    if isinstance(name, bool) or not isinstance(name, int | str) or name in (0, ""):
        return None  # Triton reads 0 and an empty string as no sequence
    return SequenceStep(str(name), start=values.get(_START) is True, end=values.get(_END) is True)
