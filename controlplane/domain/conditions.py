"""Conditions in the style of Kubernetes: what can be said of a deployment or a server, since when, and why.

Each is a statement of one type that is True, False or Unknown, with a reason for programs and a message for people.
`kept` carries the time of the last transition on, `joined` makes the statement of a whole from those of its parts, and
`Awaited` is what somebody waits for.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from controlplane.errors import InvalidInputError


class ConditionStatus(StrEnum):
    """Whether a statement holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class DeploymentCondition(StrEnum):
    """What is said of a deployment."""

    LOADED = "Loaded"
    """Triton has the wanted version loaded."""
    PROVED = "Proved"
    """The wanted version, as it is loaded now, passed its proof."""
    READY = "Ready"
    """The wanted version answers where it is wanted, and is proved."""
    PROGRESSING = "Progressing"
    """Something is being done about it at this moment."""
    DEGRADED = "Degraded"
    """Something else than the wanted version answers, or it answers where it is not wanted and has no other place."""
    HEALTHY = "Healthy"
    """What answers passed its newest probe."""


class ServerCondition(StrEnum):
    """What is said of a server."""

    LIVE = "Live"
    """Triton says that it is live."""
    READY = "Ready"
    """It can be worked with."""
    METRICS_AVAILABLE = "MetricsAvailable"
    """Its metrics can be read."""
    LOADS_STUCK = "LoadsStuck"
    """It is still busy with a load whose deadline is long over."""
    DISK_PRESSURE = "DiskPressure"
    """The disk of its model repository is nearly full."""
    SHARED_MEMORY_PRESSURE = "SharedMemoryPressure"
    """The shared memory, through which its backend processes talk, is nearly full."""


class Condition(BaseModel):
    """A statement, whether it holds, and since when."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str = Field(description="What is stated: Ready, Healthy, DiskPressure, …")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: str = Field(description="Why, as one CamelCase word for programs.")
    message: str = Field(default="", description="Why, as one sentence for a person.")
    last_transition_time: datetime | None = Field(
        default=None, description="Since when the status is what it is (UTC), as this instance saw it."
    )


_BAD_WHEN_TRUE = frozenset(
    {
        DeploymentCondition.PROGRESSING.value,
        DeploymentCondition.DEGRADED.value,
        ServerCondition.LOADS_STUCK.value,
        ServerCondition.DISK_PRESSURE.value,
        ServerCondition.SHARED_MEMORY_PRESSURE.value,
    }
)
"""Statements that hold for a whole as soon as they hold for one of its parts; the others must hold for all."""


def kept(before: Sequence[Condition], now: Sequence[Condition], at: datetime) -> tuple[Condition, ...]:
    """Return the conditions of now with the time of their last transition: that of before where nothing turned."""
    known = {condition.type: condition for condition in before}
    result = []
    for condition in now:
        earlier = known.get(condition.type)
        since = earlier.last_transition_time if earlier and earlier.status is condition.status else at
        result.append(condition.model_copy(update={"last_transition_time": since}))
    return tuple(result)


def joined(parts: Sequence[tuple[str, Sequence[Condition]]]) -> tuple[Condition, ...]:
    """Return what can be said of a whole: each part's name goes before the message where there are several parts."""
    by_type: dict[str, list[tuple[str, Condition]]] = {}
    for name, conditions in parts:
        for condition in conditions:
            by_type.setdefault(condition.type, []).append((name, condition))
    return tuple(_joined(kind, several) for kind, several in by_type.items())


def _joined(kind: str, several: Sequence[tuple[str, Condition]]) -> Condition:
    decisive = ConditionStatus.TRUE if kind in _BAD_WHEN_TRUE else ConditionStatus.FALSE
    for status in (decisive, ConditionStatus.UNKNOWN):
        chosen = [(name, one) for name, one in several if one.status is status]
        if chosen:
            # It turned for the whole when the first part turned.
            name, one = min(chosen, key=lambda pair: (pair[1].last_transition_time is None, _stamp(pair[1])))
            return _named(name, one) if len(several) > 1 else one
    # All agree: it turned for the whole when the last part turned.
    name, one = max(several, key=lambda pair: _stamp(pair[1]))
    return _named(name, one) if len(several) > 1 else one


def _named(name: str, one: Condition) -> Condition:
    return one.model_copy(update={"message": f"{name}: {one.message}" if one.message else name})


def _stamp(condition: Condition) -> float:
    return condition.last_transition_time.timestamp() if condition.last_transition_time else 0.0


class Awaited(BaseModel):
    """A condition, or a phase, that somebody waits for."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="The condition's type, or `phase`.")
    wanted: str = Field(description="The status, or the phase.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``Ready``, ``condition=Ready``, ``condition=Degraded=False`` or ``unloaded``; case does not matter.

        Raises:
            InvalidInputError: There is no such condition or status.
        """
        match = re.fullmatch(r"(?:condition=)?([A-Za-z]+)(?:=([A-Za-z]+))?", text.strip())
        name, status = (match[1].lower(), (match[2] or "true").lower()) if match else ("", "")
        if name == "unloaded" and match and match[2] is None:
            return cls(type="phase", wanted="Unloaded")
        types = {one.value.lower(): one.value for one in DeploymentCondition}
        statuses = {one.value.lower(): one.value for one in ConditionStatus}
        if name not in types or status not in statuses:
            raise InvalidInputError(
                f"nobody can wait for {text[:80]!r}: it is one of {', '.join(types.values())} or unloaded, or "
                "condition=TYPE=STATUS with True, False or Unknown"
            )
        return cls(type=types[name], wanted=statuses[status])

    def holds(self, phase: str, conditions: Sequence[Condition]) -> bool:
        """Whether it has come."""
        if self.type == "phase":
            return phase == self.wanted
        return any(one.type == self.type and one.status == self.wanted for one in conditions)

    def __str__(self) -> str:
        if self.type == "phase":
            return self.wanted
        return self.type if self.wanted == ConditionStatus.TRUE else f"{self.type}={self.wanted}"
