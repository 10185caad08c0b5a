"""Conditions in the style of Kubernetes: statements about a deployment or a server, with time and reason.

Each statement has one type and is True, False or Unknown, with a reason for programs and a message for people. `kept`
carries over the time of the last transition, `joined` derives the condition of a whole from those of its parts, and
`Awaited` is the condition that a client waits for.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from controlplane.errors import InvalidInputError


class ConditionStatus(StrEnum):
    """Whether a statement holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class DeploymentCondition(StrEnum):
    """Condition types of a deployment."""

    LOADED = "Loaded"
    """Triton has loaded the desired version."""
    PROVED = "Proved"
    """The desired version, as it is loaded now, passed its proof."""
    READY = "Ready"
    """The desired version is active where it should be, and is proved."""
    PROGRESSING = "Progressing"
    """An action on it is in progress."""
    DEGRADED = "Degraded"
    """Another version than the desired one is active, or it is active in a wrong place without an alternative."""
    HEALTHY = "Healthy"
    """The active version passed its most recent probe."""


class ServerCondition(StrEnum):
    """Condition types of a server."""

    LIVE = "Live"
    """Triton reports that it is live."""
    READY = "Ready"
    """The control plane can use it."""
    METRICS_AVAILABLE = "MetricsAvailable"
    """Its metrics can be read."""
    LOADS_STUCK = "LoadsStuck"
    """It is still busy with a load whose deadline passed long ago."""
    DISK_PRESSURE = "DiskPressure"
    """The disk of its model repository is nearly full."""
    AGENT_AVAILABLE = "AgentAvailable"
    """The agent beside it answers; only for a server with an agent."""
    SHARED_MEMORY_PRESSURE = "SharedMemoryPressure"
    """The shared memory that its backend processes communicate through is nearly full."""


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="ignore"))
class Condition:
    """A statement, whether it holds, and since when.

    A dataclass with slots takes a tenth of the memory of a `BaseModel`; each deployment has six conditions.
    """

    type: str = Field(description="Condition type: Ready, Healthy, DiskPressure, …")
    status: ConditionStatus = Field(description="Status: True, False or Unknown.")
    reason: str = Field(description="Reason for the status, as one CamelCase word for programs.")
    message: str = Field(default="", description="Reason for the status, as one sentence for people.")
    last_transition_time: datetime | None = Field(
        default=None, description="When this instance saw the status change (UTC)."
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
"""Statements that hold for a whole if they hold for any of its parts; the others must hold for all."""


def kept(before: Sequence[Condition], now: Sequence[Condition], at: datetime) -> tuple[Condition, ...]:
    """Return the current conditions with their last transition time, kept from before if the status is unchanged.

    A condition that did not change is the same object as before, so that a replica and its statuses share it.
    """
    known = {condition.type: condition for condition in before}
    result = []
    for condition in now:
        earlier = known.get(condition.type)
        if earlier is None or earlier.status is not condition.status:
            result.append(replace(condition, last_transition_time=at))
        elif (earlier.reason, earlier.message) == (condition.reason, condition.message):
            result.append(earlier)
        else:
            result.append(replace(condition, last_transition_time=earlier.last_transition_time))
    return tuple(result)


def joined(parts: Sequence[tuple[str, Sequence[Condition]]]) -> tuple[Condition, ...]:
    """Return the conditions of a whole; with several parts, each message starts with the part's name."""
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
            # The whole changed when the first part changed.
            name, one = min(chosen, key=lambda pair: (pair[1].last_transition_time is None, _stamp(pair[1])))
            return _named(name, one) if len(several) > 1 else one
    # All agree: the whole changed when the last part changed.
    name, one = max(several, key=lambda pair: _stamp(pair[1]))
    return _named(name, one) if len(several) > 1 else one


def _named(name: str, one: Condition) -> Condition:
    return replace(one, message=f"{name}: {one.message}" if one.message else name)


def _stamp(condition: Condition) -> float:
    return condition.last_transition_time.timestamp() if condition.last_transition_time else 0.0


class Awaited(BaseModel):
    """A condition or phase that a client waits for."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="The condition's type, or `phase`.")
    wanted: str = Field(description="The expected status or phase.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``Ready``, ``condition=Ready``, ``condition=Degraded=False`` or ``unloaded``, ignoring case.

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
                f"unknown condition {text[:80]!r}; expected one of {', '.join(types.values())} or unloaded, or "
                "condition=TYPE=STATUS with True, False or Unknown"
            )
        return cls(type=types[name], wanted=statuses[status])

    def holds(self, phase: str, conditions: Sequence[Condition]) -> bool:
        """Return whether the condition or phase is reached."""
        if self.type == "phase":
            return phase == self.wanted
        return any(one.type == self.type and one.status == self.wanted for one in conditions)

    def __str__(self) -> str:
        if self.type == "phase":
            return self.wanted
        return self.type if self.wanted == ConditionStatus.TRUE else f"{self.type}={self.wanted}"
