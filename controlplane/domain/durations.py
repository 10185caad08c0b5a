"""Parsing of durations and rollout steps."""

import re

from controlplane.errors import InvalidInputError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)?\s*")


def parse_duration(text: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``5m``, ``1h30m`` or ``2d``.

    Raises:
        InvalidInputError: The text is not a valid duration.
    """
    rest, seconds = text.strip().lower(), 0.0
    if not rest:
        raise InvalidInputError("a duration cannot be empty; use a number with a unit, for example 30s, 5m or 1h")
    while rest:
        match = _PART.match(rest)
        if match is None:
            raise InvalidInputError(
                f"{text!r} is not a valid duration; use a number with a unit, for example 30s, 5m, 1h30m or 2d"
            )
        seconds += float(match[1]) * _UNITS[match[2] or ""]
        rest = rest[match.end() :]
    return seconds


def parse_keep_alive(text: str) -> float | None:
    """Return a keep-alive's seconds; None for ``forever``.

    Raises:
        InvalidInputError: The text is not a valid duration.
    """
    return None if text.strip().lower() == "forever" else parse_duration(text)


def parse_steps(text: str) -> list[dict[str, float]]:
    """Return the steps of ``5%:10m,25%:1h,100%``, in the form that the API takes.

    Raises:
        InvalidInputError: The text is not a valid list of steps.
    """
    steps = []
    for part in text.split(","):
        share, _, time = part.strip().partition(":")
        try:
            weight = float(share.strip().removesuffix("%"))
        except ValueError as error:
            raise InvalidInputError(
                f"{part.strip()!r} is not a valid step; give a share and a duration, for example 5%:10m"
            ) from error
        steps.append({"weight_percent": weight, "seconds": parse_duration(time) if time else 0.0})
    return steps
