"""Reads and changes a few fields of v2's gRPC messages, on the raw bytes. Pure.

A message with a tensor of 16 MiB is not parsed only to find a name: fields follow each other, each with its number and
its length (https://protobuf.dev/programming-guides/encoding/). In every v2 request that names a model, the name is
field 1 and the version is field 2; the id of an inference request is field 3 (grpc_service.proto of the Open Inference
Protocol).

Access is granted by the name that is read here, so it must be the name that Triton reads. Parsers differ in how they
read a message that no serializer writes. If a field occurs twice, the last occurrence counts; a field with another
wire type is ignored. Numbers with more bytes than they need are either read or refused. C++ (Triton 2.51) reads field
2^29 + 1 as field 1, and Python refuses it. This module refuses such messages. The message that is sent on to Triton
begins with the name and the version that were read, and contains neither of them a second time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from controlplane.errors import InvalidInputError
from controlplane.triton.requests import PARAMETERS, parameters_of

NAME, VERSION, ID = 1, 2, 3
FIELDS_MAX = 10_000
"""Maximum number of fields of a message; the tensors of one input are one field."""
_RESPONSE = 2
"""Field number of the answer in a ``ModelStreamInferResponse``."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_NUMBER_MAX = (1 << 29) - 1
"""The largest number that a field can have."""
_LENGTH_MAX = (1 << 31) - 1
"""The largest length that a field can have."""
_VARINT_BYTES = 10
_WHAT = {NAME: "model_name", VERSION: "model_version"}


@dataclass(frozen=True, slots=True)
class Names:
    """The model, version and id that a request names."""

    name: str
    version: str = ""
    id: str = ""


def read_names(message: bytes) -> Names:
    """Return the names in a request; a name that is missing is empty.

    Raises:
        InvalidInputError: The message is ambiguous about the model it is for.
    """
    found = {NAME: b"", VERSION: b"", ID: b""}
    seen: set[int] = set()
    for number, kind, _, start, end in _fields(message):
        if number in _WHAT:
            if kind != _LENGTH:
                raise _ambiguous(f"its {_WHAT[number]} has wire type {kind}; strings have wire type {_LENGTH}")
            if number in seen:
                raise _ambiguous(f"it has more than one {_WHAT[number]}")
            seen.add(number)
        if number in found and kind == _LENGTH:
            found[number] = message[start:end]
    if 0 in found[NAME] or 0 in found[VERSION]:
        raise _ambiguous("its model_name or model_version contains a zero byte, at which some parsers stop")
    try:
        return Names(*(found[number].decode() for number in (NAME, VERSION, ID)))
    except UnicodeDecodeError:
        raise _ambiguous("its model_name, model_version or id is not UTF-8") from None


def rename(message: bytes, name: str, version: str) -> bytes:
    """Return the message with this name and version and everything else unchanged.

    Raises:
        InvalidInputError: It is not a protobuf message, or `read_names` would refuse its form.
    """
    head = _text(NAME, name) + (_text(VERSION, version) if version else b"")
    if message.startswith(head) and not any(number in _WHAT for number, *_ in _fields(message, len(head))):
        return message  # avoids a copy of up to 16 MiB
    kept = [(begin, end) for number, _, begin, _, end in _fields(message) if number not in _WHAT]
    return b"".join([head, *(message[begin:end] for begin, end in _joined(kept))])


def parameter(message: bytes, key: str) -> str:
    """Return the value of a ``ModelInferRequest`` parameter if it is a string or a number; else an empty string.

    Raises:
        InvalidInputError: The parameters cannot be read.
    """
    if key.encode() not in message:
        return ""
    return parameters_of(b"".join(spans(message, PARAMETERS))).get(key, "")


def spans(message: bytes, wanted: int) -> Iterator[bytes]:
    """Yield every occurrence of a field, with its tag.

    Raises:
        InvalidInputError: The bytes are not the fields of a message.
    """
    for number, _, begin, _, end in _fields(message):
        if number == wanted:
            yield message[begin:end]


def rename_stream_answer(message: bytes, name: str) -> bytes:
    """Return a ``ModelStreamInferResponse`` in which the model's name is replaced, and its version left out."""
    parts = []
    for number, _, begin, start, end in _fields(message):
        if number == _RESPONSE:
            inner = rename(message[start:end], name, "")
            parts.append(_tag(_RESPONSE, len(inner)) + inner)
        else:
            parts.append(message[begin:end])
    return b"".join(parts)


def stream_error(reason: str, request_id: str) -> bytes:
    """Return a ``ModelStreamInferResponse`` that reports an error, as Triton does inside a stream."""
    inner = _text(ID, request_id) if request_id else b""
    return _text(1, reason) + _tag(2, len(inner)) + inner


def is_ready(answer: bool) -> bytes:
    """Return a ``ModelReadyResponse``."""
    return b"\x08\x01" if answer else b""


def _ambiguous(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the request is ambiguous about its model: {why}; send model_name and model_version once each, as a protobuf "
        "serializer writes them"
    )


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans, with adjacent ones merged."""
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def _fields(message: bytes, at: int = 0) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield each field from a position on: number, wire type, start of the field, start and end of its value.

    Raises:
        InvalidInputError: The bytes are not the fields of a message, or parsers may read them differently.
    """
    size, count = len(message), 0
    while at < size:
        if (count := count + 1) > FIELDS_MAX:
            raise _ambiguous(f"it has more than {FIELDS_MAX} fields")
        begin = at
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number <= _NUMBER_MAX:
            raise _ambiguous(f"a field has the number {number}")
        start = at
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _LENGTH:
            length, start = _varint(message, at)
            if length > _LENGTH_MAX:
                raise _ambiguous(f"field {number} has {length} bytes")
            at = start + length
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise _ambiguous(f"field {number} has wire type {kind}")
        if at > size:
            raise _ambiguous(f"field {number} is truncated")
        yield number, kind, begin, start, at


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for place in range(at, min(at + _VARINT_BYTES, len(message))):
        byte = message[place]
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if byte == 0 and shift:
                raise _ambiguous("a varint has more bytes than it needs")
            return value, place + 1
        shift += 7
    raise _ambiguous("a varint is truncated or too long")


def _text(number: int, value: str) -> bytes:
    raw = value.encode()
    return _tag(number, len(raw)) + raw


def _tag(number: int, length: int) -> bytes:
    encoded = bytearray([number << 3 | _LENGTH])
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
