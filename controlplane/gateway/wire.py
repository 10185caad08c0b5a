"""The few fields of v2's gRPC messages that the front door reads or changes, on the raw bytes. Pure.

A message with a tensor of 16 MiB is not parsed for the sake of a name: fields stand one after the other, each with its
number and its length (https://protobuf.dev/programming-guides/encoding/), and names and versions come first. All of
v2's requests that name a model have the name as field 1 and the version as field 2; an inference's id is field 3
(grpc_service.proto of the Open Inference Protocol).
"""

from collections.abc import Iterator
from dataclasses import dataclass

NAME, VERSION, ID, PARAMETERS = 1, 2, 3, 4
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Names:
    """What a request says of the model it is for."""

    name: str
    version: str = ""
    id: str = ""


def read_names(message: bytes) -> Names:
    """Return the names in a request; empty ones where it has none, or is no message of protobuf."""
    found = {NAME: "", VERSION: "", ID: ""}
    try:
        for number, kind, _, start, end in _fields(message):
            if number > ID:
                break  # writers keep the order of the numbers, and what follows is large
            if kind == _LENGTH and number in found:
                found[number] = message[start:end].decode()
    except (IndexError, ValueError):
        pass
    return Names(found[NAME], found[VERSION], found[ID])


def rename(message: bytes, name: str, version: str) -> bytes:
    """Return a request for another name and version, everything else as it was."""
    head = b""
    rest = 0
    for number, _, begin, start, end in _fields(message):
        if number not in (NAME, VERSION):
            rest = begin
            break
        rest = end
        del start
    head = _text(NAME, name) + (_text(VERSION, version) if version else b"")
    return head + message[rest:]


def parameter(message: bytes, key: str) -> str:
    """Return the value of a parameter of a ``ModelInferRequest``, if it is a text or a number; else an empty text."""
    try:
        for number, kind, _, start, end in _fields(message):
            if number > PARAMETERS:
                break  # tensors follow
            if number == PARAMETERS and kind == _LENGTH:
                entry = message[start:end]  # of a map: the key as field 1, an InferParameter as field 2
                fields = {n: entry[s:e] for n, k, _, s, e in _fields(entry) if k == _LENGTH}
                if fields.get(1) == key.encode():
                    return _value(fields.get(2, b""))
    except (IndexError, ValueError):
        pass
    return ""


def _value(parameter_message: bytes) -> str:
    for number, kind, _, start, end in _fields(parameter_message):
        if (number, kind) == (3, _LENGTH):  # string_param
            return parameter_message[start:end].decode()
        if (number, kind) == (2, _VARINT):  # int64_param
            return str(_varint(parameter_message, start)[0])
    return ""


def stream_error(reason: str, request_id: str) -> bytes:
    """Return a ``ModelStreamInferResponse`` that reports an error, as Triton does inside a stream."""
    inner = _text(ID, request_id) if request_id else b""
    return _text(1, reason) + _tag(2, len(inner)) + inner


def is_ready(answer: bool) -> bytes:
    """Return a ``ModelReadyResponse``."""
    return b"\x08\x01" if answer else b""


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield number, wire type, begin of the field, begin and end of its value."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            start = at
            _, at = _varint(message, at)
        elif kind == _LENGTH:
            length, start = _varint(message, at)
            at = start + length
        elif kind in (_FIXED32, _FIXED64):
            start, at = at, at + (4 if kind == _FIXED32 else 8)
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(message):
            raise ValueError("a field is cut short")
        yield tag >> 3, kind, begin, start, at


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


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
