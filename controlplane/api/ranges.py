"""The ``Range`` header, one range of bytes (RFC 9110, section 14)."""

import re
from dataclasses import dataclass
from typing import ClassVar

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file.

    Attributes:
        start: Its first byte.
        length: Its length in bytes.
    """

    start: int
    length: int

    UNSATISFIABLE: ClassVar["ByteRange"]


ByteRange.UNSATISFIABLE = ByteRange(-1, 0)


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Return the requested range; None for the whole file.

    A header that is not understood, or that requests several ranges, is ignored, as the RFC allows.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        length = min(int(last), size)
        return ByteRange(size - length, length) if length else ByteRange.UNSATISFIABLE
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    return ByteRange(start, end - start + 1) if start < size else ByteRange.UNSATISFIABLE
