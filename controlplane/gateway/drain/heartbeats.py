"""Who of the other gateways lives, by their signs of life. Pure: what is heard now is added to what was known."""

from collections.abc import Mapping
from dataclasses import dataclass

BEAT_SECONDS = 5.0
"""Time between two signs of life of a gateway."""
GONE_SECONDS = 20.0
"""A gateway that has been silent for so long is gone."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What is known of another gateway.

    Attributes:
        number: That of its newest sign of life.
        silent_seconds: How long it has given no other one, as far as anybody could listen.
    """

    number: int
    silent_seconds: float = 0.0

    @property
    def gone(self) -> bool:
        """Whether it has been silent for too long."""
        return self.silent_seconds > GONE_SECONDS


def update_heartbeats(
    known: Mapping[str, Heartbeat], numbers: Mapping[str, int], passed_seconds: float
) -> dict[str, Heartbeat]:
    """Take in what the bucket says now.

    A time in which the bucket could not be read, or this process did not run, is nobody's silence: the others may not
    have been able to write either. Of it, no more than the pause between two signs is counted.

    Args:
        known: What was known, by gateway.
        numbers: The newest number of all that are listed.
        passed_seconds: Between the end of the last look that succeeded and the beginning of this one.

    Returns:
        What is known now, of those that are listed.
    """
    counted = min(passed_seconds, BEAT_SECONDS)
    return {
        gateway: Heartbeat(number, known[gateway].silent_seconds + counted)
        if gateway in known and known[gateway].number == number
        else Heartbeat(number)
        for gateway, number in numbers.items()
    }
