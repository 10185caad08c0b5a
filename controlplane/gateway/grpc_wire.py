"""The few fields of v2's gRPC messages that the gateway reads or changes, on the raw bytes. Pure.

A message with a tensor of 16 MiB is not parsed for the sake of a name: fields stand one after the other, each with its
number and its length (https://protobuf.dev/programming-guides/encoding/). All of v2's requests that name a model have
the name as field 1 and the version as field 2; an inference's id is field 3 (grpc_service.proto of the Open Inference
Protocol).

Access is granted by the name that is read here, so it must be the name that Triton reads. Parsers differ in what they
make of a message that no serializer writes. The last one counts of a field that is there twice, and none of a field
with another wire type. Numbers with more bytes than they need are read or refused. For C++ (Triton 2.51) the field
2^29 + 1 is the field 1, and Python refuses it. Such a message is refused here. What goes on to Triton begins with the
name and the version that were read, and has neither of them a second time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from controlplane.errors import InvalidInputError
from controlplane.triton.requests import PARAMETERS, parameters_of

NAME, VERSION, ID = 1, 2, 3
FIELDS_MAX = 10_000
"""Fields of a message, at the most; the tensors of one input are one field."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_NUMBER_MAX = (1 << 29) - 1
"""The largest number that a field can have."""
_LENGTH_MAX = (1 << 31) - 1
"""The largest length that a field can have."""
_VARINT_BYTES = 10
_WHAT = {NAME: "model_name", VERSION: "model_version"}


@dataclass(frozen=True, slots=True)
class Names:
    """What a request says of the model it is for."""

    name: str
    version: str = ""
    id: str = ""


def read_names(message: bytes) -> Names:
    """Return the names in a request; empty ones where it has none.

    Raises:
        InvalidInputError: The message does not say without doubt which model it is for.
    """
    found = {NAME: b"", VERSION: b"", ID: b""}
    seen: set[int] = set()
    for number, kind, _, start, end in _fields(message):
        if number in _WHAT:
            if kind != _LENGTH:
                raise _ambiguous(f"its {_WHAT[number]} has wire type {kind}, which is not that of a text")
            if number in seen:
                raise _ambiguous(f"it has more than one {_WHAT[number]}")
            seen.add(number)
        if number in found and kind == _LENGTH:
            found[number] = message[start:end]
    if 0 in found[NAME] or 0 in found[VERSION]:
        raise _ambiguous("its model_name or model_version holds a zero byte, at which some readers end")
    try:
        return Names(*(found[number].decode() for number in (NAME, VERSION, ID)))
    except UnicodeDecodeError:
        raise _ambiguous("its model_name, model_version or id is not UTF-8") from None


def rename(message: bytes, name: str, version: str) -> bytes:
    """Return a message for this name and version, everything else as it was.

    Raises:
        InvalidInputError: It is no message of protobuf, or one that `read_names` would refuse for its form.
    """
    head = _text(NAME, name) + (_text(VERSION, version) if version else b"")
    if message.startswith(head) and not any(number in _WHAT for number, *_ in _fields(message, len(head))):
        return message  # 16 MiB are not copied for nothing
    kept = [(begin, end) for number, _, begin, _, end in _fields(message) if number not in _WHAT]
    return b"".join([head, *(message[begin:end] for begin, end in _joined(kept))])


def parameter(message: bytes, key: str) -> str:
    """Return the value of a parameter of a ``ModelInferRequest``, if it is a text or a number; else an empty text.

    Raises:
        InvalidInputError: The parameters cannot be read.
    """
    if key.encode() not in message:
        return ""
    spans = [(begin, end) for number, _, begin, _, end in _fields(message) if number == PARAMETERS]
    return parameters_of(b"".join(message[begin:end] for begin, end in spans)).get(key, "")


def stream_error(reason: str, request_id: str) -> bytes:
    """Return a ``ModelStreamInferResponse`` that reports an error, as Triton does inside a stream."""
    inner = _text(ID, request_id) if request_id else b""
    return _text(1, reason) + _tag(2, len(inner)) + inner


def is_ready(answer: bool) -> bytes:
    """Return a ``ModelReadyResponse``."""
    return b"\x08\x01" if answer else b""


def _ambiguous(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the request does not say without doubt which model it is for: {why}; send model_name and model_version once "
        "each, as a serializer of protobuf writes them"
    )


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans with those that follow each other made one."""
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def _fields(message: bytes, at: int = 0) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield number, wire type, begin of the field, begin and end of its value, of all fields from a position on.

    Raises:
        InvalidInputError: These are not the fields of a message, or parsers may read them differently.
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
            raise _ambiguous(f"field {number} is cut short")
        yield number, kind, begin, start, at


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for place in range(at, min(at + _VARINT_BYTES, len(message))):
        byte = message[place]
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if byte == 0 and shift:
                raise _ambiguous("a number has more bytes than it needs")
            return value, place + 1
        shift += 7
    raise _ambiguous("a number is cut short or too long")


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
