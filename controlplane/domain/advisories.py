"""Triton releases with published vulnerabilities that a later release fixes. Pure.

Sources: the records at https://www.cve.org/CVERecord?id=… (fields ``affected``), and NVIDIA's bulletins in
https://github.com/NVIDIA/product-security, by their numbers. Triton's own version follows its monthly container
release: 2.46 is 24.05, 2.51 is 24.10, 2.53 is 24.12, 2.59.0 is 25.06, 2.59.1 is 25.07, 2.60 is 25.08, 2.73 is 26.09.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advisory:
    """Vulnerabilities that a release fixed.

    Attributes:
        fixed_in: The container release that has the fix, such as ``25.07``.
        ids: CVE ids, or NVIDIA's bulletin.
        what: What an attacker can do.
    """

    fixed_in: str
    ids: tuple[str, ...]
    what: str


ADVISORIES = (
    Advisory(
        "25.07",
        (
            "CVE-2025-23310",
            "CVE-2025-23311",
            "CVE-2025-23317",
            "CVE-2025-23319",
            "CVE-2025-23320",
            "CVE-2025-23334",
        ),
        "code execution by HTTP requests and by requests to Python backends",
    ),
    Advisory("25.08", ("CVE-2025-23316",), "code execution by model names in the model control API"),
    Advisory("26.03", ("CVE-2026-24206", "CVE-2026-24207"), "authentication bypass"),
    Advisory("26.06", ("NVIDIA bulletin 5865",), "critical; see the bulletin"),
    Advisory("26.07", ("NVIDIA bulletin 5875",), "high; see the bulletin"),
)

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_LAST_OF_OLD_COUNT = 59
"""Up to this minor version, versions and months advance together; then 2.59.1 took the place of 2.60."""


def release_of(version: str) -> str:
    """Return the container release of a Triton version, such as ``24.10`` for 2.51.0; empty if it is unknown."""
    match = _VERSION.match(version)
    if match is None or match[1] != "2":
        return ""
    minor, patch = int(match[2]), int(match[3])
    if minor < _LAST_OF_OLD_COUNT - 35:
        return ""  # years old, and numbered less regularly
    months = 25 * 12 + 6 + (minor - _LAST_OF_OLD_COUNT) - 1
    if minor > _LAST_OF_OLD_COUNT or (minor == _LAST_OF_OLD_COUNT and patch > 0):
        months += 1
    return f"{months // 12}.{months % 12 + 1:02d}"


def advisories_for(version: str) -> tuple[Advisory, ...]:
    """Return the advisories whose fix a Triton version lacks; none for an unknown version."""
    release = release_of(version)
    return tuple(one for one in ADVISORIES if release and _number(release) < _number(one.fixed_in))


@functools.cache
def warnings_for(version: str, *, embedded: bool) -> tuple[str, ...]:
    """Return what an operator must know about a server's version, one sentence each."""
    return tuple(_warnings(version, embedded=embedded))


def _warnings(version: str, *, embedded: bool) -> Iterator[str]:
    found = advisories_for(version)
    if not found:
        return
    release, newest = release_of(version), max((one.fixed_in for one in found), key=_number)
    for one in found:
        yield f"Triton {version} ({release}) lacks the fix in {one.fixed_in} for {', '.join(one.ids)}: {one.what}"
    if embedded:
        yield (
            "the embedded server cannot be updated, because nvidia-pytriton has no newer release; it listens on "
            f"loopback only. To serve other clients, run Triton {newest} or newer and use `tritonctl serve`"
        )
    else:
        yield f"update it to {newest} or newer"


def _number(release: str) -> tuple[int, int]:
    year, _, month = release.partition(".")
    return int(year), int(month)
