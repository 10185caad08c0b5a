"""Health of a server: its conditions, and the remediation that they call for. Pure, except for `ServerHealth`, which keeps state.

`remediation` handles a supervised server in this order:

1.  The server process exists but has not answered for `unresponsive_after_seconds`: kill the server. Its supervisor
    restarts it, after a pause that grows with each restart.
2.  A load has exceeded its deadline by `unresponsive_after_seconds`: kill the backend process of that load. Triton then
    gives the load up, and all other models keep running.
3.  The load has not ended `unresponsive_after_seconds` after step 2: kill the server as in step 1, because nothing else
    ends a load.

An external server is only reported; its operator must restart it.
"""  # noqa: E501

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from controlplane.domain.conditions import Condition, ConditionStatus, ServerCondition
from controlplane.domain.states import ServerState
from controlplane.domain.units import size_text
from controlplane.servers.snapshot import ServerSnapshot, Space


class Remediation(Enum):
    """Action to take on a server."""

    NOTHING = auto()
    END_LOADS = auto()
    KILL = auto()


@dataclass(frozen=True, slots=True)
class StuckLoad:
    """Version whose load in Triton has exceeded its deadline and that no request waits for any more.

    Attributes:
        name: The name in Triton.
        version: The version number.
        seconds: Seconds by which the load has exceeded its deadline.
        ended: Seconds since the backend process was killed; None if no kill was attempted.
    """

    name: str
    version: int
    seconds: float
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class HealthSignals:
    """Observed state of a server, as input for remediation and conditions.

    Attributes:
        supervised: Whether this process started the server.
        state: The state in the newest snapshot.
        message: The reason for that state.
        timed_out: Whether the newest snapshot timed out, as opposed to a refused connection.
        live: Whether Triton reports that it is live.
        silent_seconds: Seconds without an answer although the process exists; None if the server answers.
        stuck: Loads that have exceeded their deadline.
        metrics: Whether the metrics can be read; None if no read was attempted or the server has no metrics endpoint.
        spaces: Disk and shared memory.
        agent: Why its agent does not answer; empty if it does, None without an agent.
    """

    supervised: bool
    state: ServerState
    message: str = ""
    timed_out: bool = False
    live: bool = False
    silent_seconds: float | None = None
    stuck: tuple[StuckLoad, ...] = ()
    metrics: bool | None = None
    spaces: tuple[Space, ...] = ()
    agent: str | None = None


def remediation(signs: HealthSignals, unresponsive_after_seconds: float) -> Remediation:
    """Decide what to do about a server; the numbers refer to the list in the module docstring."""
    if not signs.supervised:
        return Remediation.NOTHING
    if signs.silent_seconds is not None and signs.silent_seconds >= unresponsive_after_seconds:  # 1
        return Remediation.KILL
    if any(load.ended is not None and load.ended >= unresponsive_after_seconds for load in signs.stuck):  # 3
        return Remediation.KILL
    if any(load.ended is None and load.seconds >= unresponsive_after_seconds for load in signs.stuck):  # 2
        return Remediation.END_LOADS
    return Remediation.NOTHING


def server_conditions(
    signs: HealthSignals, disk_pressure_threshold: float, unresponsive_after_seconds: float
) -> tuple[Condition, ...]:
    """Return the conditions of a server, without transition times."""
    ready = signs.state is ServerState.READY
    hung = not ready and (signs.timed_out or signs.silent_seconds is not None)
    why = "Hung" if hung else signs.state.value
    return (
        _said(ServerCondition.LIVE, ready and signs.live, "Live" if ready and signs.live else why, signs.message),
        _said(ServerCondition.READY, ready, why, signs.message or ("the server answers" if ready else "")),
        _metrics(signs, ready=ready),
        _stuck(signs, unresponsive_after_seconds, ready=ready),
        *(
            _pressure(kind, signs.spaces, disk_pressure_threshold)
            for kind in (ServerCondition.DISK_PRESSURE, ServerCondition.SHARED_MEMORY_PRESSURE)
        ),
        *_agent(signs),
    )


def _agent(signs: HealthSignals) -> tuple[Condition, ...]:
    """Return the condition of a server's agent; none for a server without one."""
    if signs.agent is None:
        return ()
    reason = "AgentUnreachable" if signs.agent else "AgentAnswers"
    return (_said(ServerCondition.AGENT_AVAILABLE, not signs.agent, reason, signs.agent),)


def _metrics(signs: HealthSignals, *, ready: bool) -> Condition:
    kind = ServerCondition.METRICS_AVAILABLE
    if signs.metrics is None or not ready:
        return _unknown(kind, "NotRead", "the metrics have not been read" if ready else "the server does not answer")
    if signs.metrics:
        return _said(kind, True, "MetricsRead", "")
    return _said(kind, False, "MetricsMissing", "the metrics port does not answer, so the queue lengths are unknown")


def _stuck(signs: HealthSignals, unresponsive_after_seconds: float, *, ready: bool) -> Condition:
    kind = ServerCondition.LOADS_STUCK
    stuck = [load for load in signs.stuck if load.seconds >= unresponsive_after_seconds]
    if not ready:
        return _unknown(kind, "NotSeen", "the server does not answer")
    if not stuck:
        return _said(kind, False, "NoLoadStuck", "")
    names = ", ".join(f"{load.name}:{load.version} for {load.seconds:.0f} s" for load in stuck)
    advice = "" if signs.supervised else "; only a restart of the server ends a load"
    return _said(kind, True, "LoadStuck", f"Triton is still loading {names}, beyond the deadline{advice}")


def _pressure(kind: ServerCondition, spaces: Iterable[Space], share: float) -> Condition:
    space = next((one for one in spaces if one.kind is kind), None)
    if space is None:
        return _unknown(kind, "NotVisible", "not visible from this instance")
    left = f"{size_text(space.free_bytes)} of {size_text(space.total_bytes)} are free on {space.path}"
    tight = space.free_bytes < share * space.total_bytes
    return _said(kind, tight, "NearlyFull" if tight else "Enough", left)


def _said(kind: ServerCondition, holds: bool, reason: str, message: str) -> Condition:
    status = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
    return Condition(type=kind, status=status, reason=reason, message=message)


def _unknown(kind: ServerCondition, reason: str, message: str) -> Condition:
    return Condition(type=kind, status=ConditionStatus.UNKNOWN, reason=reason, message=message)


@dataclass
class ServerHealth:
    """Mutable health state of one server. Times are monotonic seconds.

    Attributes:
        conditions: The newest conditions with their transition times.
        metrics: Whether the newest attempt to read the metrics succeeded.
        kills: How often the server was killed because it was unresponsive.
    """

    conditions: tuple[Condition, ...] = ()
    metrics: bool | None = None
    kills: int = 0
    _silent_since: float | None = None
    _loading: dict[tuple[str, int], float] = field(default_factory=dict)
    _ended: dict[tuple[str, int], float] = field(default_factory=dict)

    def seen(self, snapshot: ServerSnapshot, *, process_there: bool, loads: Mapping[str, float], now: float) -> None:
        """Apply a snapshot.

        Args:
            snapshot: The snapshot.
            process_there: Whether the server process exists on this machine, so that silence does not mean absence.
            loads: Allowed duration in seconds of each load in progress, by name in Triton; other loads are not watched.
            now: The present time.
        """
        if snapshot.state is ServerState.READY:
            self._silent_since = None
            loading = {(e.model, e.version) for e in snapshot.index if e.state == "LOADING" and e.model in loads}
            self._loading = {key: self._loading.get(key, now + loads[key[0]]) for key in loading}
            self._ended = {key: at for key, at in self._ended.items() if key in loading}
        else:
            self._loading, self._ended, self.metrics = {}, {}, None
            if not process_there:
                self._silent_since = None
            elif self._silent_since is None:
                self._silent_since = now

    def ended(self, loads: Iterable[StuckLoad], now: float) -> None:
        """Record that the processes of these loads were killed."""
        self._ended |= {(load.name, load.version): now for load in loads}

    def killed(self) -> None:
        """Record that the server was killed."""
        self.kills += 1
        self._silent_since = None
        self._loading, self._ended = {}, {}

    def signs(self, snapshot: ServerSnapshot, *, supervised: bool, now: float) -> HealthSignals:
        """Return the signals that the decisions need."""
        return HealthSignals(
            supervised=supervised,
            state=snapshot.state,
            message=snapshot.message,
            timed_out=snapshot.timed_out,
            live=snapshot.live,
            silent_seconds=None if self._silent_since is None else now - self._silent_since,
            stuck=tuple(
                StuckLoad(name, version, now - since, now - ended if ended is not None else None)
                for (name, version), since in self._loading.items()
                if since <= now
                for ended in (self._ended.get((name, version)),)
            ),
            metrics=self.metrics,
            spaces=snapshot.spaces,
            agent=snapshot.agent,
        )
