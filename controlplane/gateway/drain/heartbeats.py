"""Tracks which peer gateways are alive from their heartbeats. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

BEAT_SECONDS = 5.0
"""Time between two heartbeats of a gateway."""
GONE_SECONDS = 20.0
"""A gateway without a new heartbeat for longer than this is gone."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The heartbeat state of a peer gateway.

    Attributes:
        number: The number of its newest heartbeat.
        silent_seconds: Time without a newer heartbeat during which the store could be read.
    """

    number: int
    silent_seconds: float = 0.0

    @property
    def gone(self) -> bool:
        """Whether the peer has missed its heartbeats for too long."""
        return self.silent_seconds > GONE_SECONDS


def update_heartbeats(
    known: Mapping[str, Heartbeat], numbers: Mapping[str, int], passed_seconds: float
) -> dict[str, Heartbeat]:
    """Return the heartbeat states after a read of the store.

    Time during which the store could not be read, or this process did not run, does not count as missed heartbeats:
    the peers may not have been able to write either. At most the interval between two heartbeats of it is counted.

    Args:
        known: The earlier states, by gateway.
        numbers: The newest heartbeat number of every registered gateway.
        passed_seconds: Time between the end of the last successful read and the start of this one.

    Returns:
        The states of the registered gateways.
    """
    counted = min(passed_seconds, BEAT_SECONDS)
    return {
        gateway: Heartbeat(number, known[gateway].silent_seconds + counted)
        if gateway in known and known[gateway].number == number
        else Heartbeat(number)
        for gateway, number in numbers.items()
    }
