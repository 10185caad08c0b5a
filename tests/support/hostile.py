"""gRPC requests that no serializer writes: duplicate names, other orders, other wire types, truncated messages.

The fields are those of a ``ModelInferRequest`` for a model made by `tests.support.api.onnx_scale`.
"""

from collections.abc import Sequence
from random import Random

import numpy as np
from tritonclient.grpc import service_pb2

NAME, VERSION = 1, 2
_VARINT, _FIXED64, _LENGTH, _GROUP, _GROUP_END, _FIXED32 = range(6)


def varint(value: int, extra: int = 0) -> bytes:
    """Return a varint with this many extra bytes."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    for _ in range(extra):
        encoded[-1] |= 0x80
        encoded.append(0)
    return bytes(encoded)


def text(number: int, value: bytes, tag_extra: int = 0, length_extra: int = 0) -> bytes:
    """A field with a length."""
    return varint(number << 3 | _LENGTH, tag_extra) + varint(len(value), length_extra) + value


def tensors(rows: int = 1) -> bytes:
    """The input of the model."""
    request = service_pb2.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[rows, 2])
    assert tensor.name == "x"
    request.raw_input_contents.append(np.ones((rows, 2), np.float32).tobytes())
    written: bytes = request.SerializeToString()
    return written


def framed(message: bytes, flag: int = 0) -> bytes:
    """A message as gRPC sends it."""
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def request(random: Random, names: Sequence[str]) -> bytes:
    """Return a random request, usually slightly malformed."""
    name = [_named(random, NAME, random.choice(names)) for _ in range(random.choice([1, 1, 1, 1, 1, 2, 2, 2, 3]))]
    version = [
        _named(random, VERSION, random.choice(["", "1", "1", "1", "2"]))
        for _ in range(random.choice([0] * 6 + [1] * 5 + [2]))
    ]
    rest = [_unknown(random, random.choice(names)) for _ in range(random.choice([0, 0, 0, 0, 1, 2]))]
    if random.random() < 0.3:
        rest.append(text(3, random.choice([b"7", b"", b"\xff"])))
    if random.random() < 0.3:
        rest.append(text(4, text(1, b"x-model-version") + text(2, text(3, b"1"))))
    fields = [*name, *version, *rest, tensors()]
    if random.random() < 0.5:
        random.shuffle(fields)
    message = b"".join(fields)
    match random.randrange(25):
        case 0:
            return message[: random.randrange(len(message))]
        case 1:
            return message + random.randbytes(random.randrange(1, 4))
        case 2:
            place = random.randrange(len(message))
            return message[:place] + random.randbytes(1) + message[place + 1 :]
    return message


def _named(random: Random, number: int, value: str) -> bytes:
    raw = value.encode()
    match random.randrange(40):
        case 0:
            return text(number, raw, tag_extra=random.randrange(1, 6))
        case 1:
            return text(number, raw, length_extra=random.randrange(1, 6))
        case 2:
            return varint(number << 3 | _VARINT) + varint(random.randrange(1 << 40))
        case 3:
            return varint(number << 3 | _FIXED32) + raw[:4].ljust(4)
        case 4:
            return varint(number << 3 | _FIXED64) + raw[:8].ljust(8)
        case 5:
            return _group(number, text(number, raw))
        case 6:
            return text(number, raw + random.choice([b"\0", b"\0other", b"\xff", b" "]))
        case 7:
            return text(number, b"")
        case 8:
            return varint((number + (1 << 29)) << 3 | _LENGTH) + varint(len(raw)) + raw  # beyond the largest number
        case 9:
            return text(number, raw)[:-1]  # takes a byte of what follows
    return text(number, raw)


def _unknown(random: Random, name: str) -> bytes:
    number = random.choice([8, 15, 16, 19, 1000, (1 << 29) - 1])
    match random.randrange(10):
        case 0:
            return varint(number << 3 | _VARINT) + varint(random.randrange(1 << 64))
        case 1:
            return varint(number << 3 | _FIXED32) + b"\x0a\x01xx"
        case 2:
            return varint(number << 3 | _FIXED64) + b"\x0a\x06other!"
        case 3:
            return _group(number, text(NAME, name.encode()))
        case 4:
            return varint(number << 3 | _VARINT) + varint(1, extra=random.randrange(1, 10))  # packed, or once
        case 5:
            return text(5, text(1, name.encode()))  # an input whose name is that of a model
    return text(number, text(NAME, name.encode()))


def _group(number: int, inside: bytes) -> bytes:
    return varint(number << 3 | _GROUP) + inside + varint(number << 3 | _GROUP_END)
