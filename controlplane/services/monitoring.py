"""Metrics of deployments, and alerts when an objective is violated."""

import asyncio
import contextlib
import logging
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.metrics import ObjectiveKind, ObjectiveState, Point, ServerUse, TrafficStats
from controlplane.errors import InvalidInputError
from controlplane.monitoring.alerts import AlertNotifier
from controlplane.monitoring.monitor import MAX_WINDOW_SECONDS, Monitor
from controlplane.monitoring.objectives import judge
from controlplane.monitoring.webhook import Webhook
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.condition_log import ConditionLog
from controlplane.services.deployments import Deployments
from controlplane.settings import MonitoringSettings

logger = logging.getLogger(__name__)

MAX_POINTS = 240


class DeploymentMetrics(BaseModel):
    """Metrics and objectives of a deployment."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = Field(description="The model's name.")
    at: datetime = Field(description="When the window ends (UTC).")
    window_seconds: float = Field(description="The window.")
    total: TrafficStats = Field(description="All versions on all servers together.")
    versions: tuple[TrafficStats, ...] = Field(
        description="By version and server, for those that were loaded in the window."
    )
    points: tuple[Point, ...] = Field(description="Equal parts of the window, oldest first.")
    servers: tuple[ServerUse, ...] = Field(description="Processor utilisation of the servers.")
    objectives: tuple[ObjectiveState, ...] = Field(description="State of its objectives; empty if it has none.")


class Monitoring:
    """Use cases for metrics and objectives.

    Args:
        monitor: The windows.
        reconciler: Knows the deployments, and records events.
        deployments: Checks that a model is deployed.
        settings: Windows and intervals.
        webhook: Receives an alert from the leader when an objective burns, and when it is met again.
        condition_log: Stores which alerts were sent.
    """

    def __init__(
        self,
        monitor: Monitor,
        reconciler: Reconciler,
        deployments: Deployments,
        settings: MonitoringSettings,
        webhook: Webhook,
        condition_log: ConditionLog,
    ) -> None:
        self.monitor = monitor
        self.webhook = webhook
        self._reconciler = reconciler
        self._deployments = deployments
        self._settings = settings
        self._states: dict[str, tuple[ObjectiveState, ...]] = {}
        self._burning: set[tuple[str, ObjectiveKind]] = set()
        self._notices = AlertNotifier(
            condition_log,
            webhook,
            leading=lambda: reconciler.leading,
            seasoned_seconds=min((rule.short_seconds for rule in settings.burn_rules), default=0.0),
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to monitor the servers and the objectives."""
        await self.monitor.start()
        await self.webhook.start()
        self._task = asyncio.create_task(self._watch(), name="objectives")

    async def stop(self) -> None:
        """Stop the monitoring."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.webhook.stop()
        await self._notices.stop()
        await self.monitor.stop()

    async def metrics(self, model: str, *, window_seconds: float, points: int) -> DeploymentMetrics:
        """Return a deployment's metrics.

        Raises:
            NotFoundError: The model is not deployed.
            InvalidInputError: The window is longer than the kept history.
        """
        if window_seconds > MAX_WINDOW_SECONDS:
            raise InvalidInputError(
                f"a window of {window_seconds:g} s is too long; the maximum is {MAX_WINDOW_SECONDS:g} s (6h)",
                limit_seconds=MAX_WINDOW_SECONDS,
            )
        await self._deployments.get(model)
        monitor = self.monitor
        return DeploymentMetrics(
            model=model,
            at=datetime.now(UTC),
            window_seconds=window_seconds,
            total=monitor.traffic_stats(model, None, window_seconds),
            versions=tuple(
                monitor.traffic_stats(model, version, window_seconds, server)
                for server, version in monitor.versions(model, window_seconds)
            ),
            points=monitor.points(model, window_seconds, points),
            servers=monitor.use(),
            objectives=self.objectives(model),
        )

    def deployed(self) -> dict[str, DeploymentSpec]:
        """Return the deployed models and their specs. No I/O."""
        return {model: revision.spec for model, revision in self._reconciler.deployed().items()}

    def propagation_lag(self) -> dict[str, float]:
        """Return for how many seconds each deployment has differed from its desired state; 0: it does not. No I/O."""
        return dict.fromkeys(self._reconciler.deployed(), 0.0) | self._reconciler.propagation_lag()

    def objectives(self, model: str) -> tuple[ObjectiveState, ...]:
        """Return the state of a deployment's objectives, evaluated now; empty if it has none. No I/O."""
        spec = self._reconciler.spec(model)
        return self._judge(model, spec) if spec is not None else ()

    def states(self) -> dict[str, tuple[ObjectiveState, ...]]:
        """Return the state of all objectives by model, as last evaluated. No I/O."""
        return dict(self._states)

    def _judge(self, model: str, spec: DeploymentSpec) -> tuple[ObjectiveState, ...]:
        objectives = spec.settings.objectives
        if objectives is None:
            return ()
        limit = (objectives.p99_milliseconds or 0.0) / 1000
        return judge(
            objectives,
            slow=lambda window: self.monitor.slow(model, limit, window),
            failed=lambda window: self.monitor.failed(model, window),
            rules=self._settings.burn_rules,
            min_requests=self._settings.min_requests,
        )

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:
                # An unexpected error in one evaluation must not end the loop.
                logger.exception("failed to evaluate the objectives")
            await asyncio.sleep(self._settings.objective_interval_seconds)

    async def _look(self) -> None:
        deployed = self._reconciler.deployed()
        self._reconciler.propagation_lag()  # so that a deployment that begins to lag is noticed on time
        tells = self._notices.ready()
        for model in self._states.keys() - deployed.keys():
            del self._states[model]
        watched = self._reconciler.with_objectives()
        known = self._states.keys() | {model for model, _ in self._burning} | self._notices.models()
        for model in sorted(watched | (known & deployed.keys())):
            if (spec := self._reconciler.spec(model)) is None:
                continue  # removed meanwhile
            states = self._judge(model, spec)
            if states:
                self._states[model] = states
            else:
                self._states.pop(model, None)
            self._tell(model, spec, states, webhook=tells)
            await asyncio.sleep(0)  # hundreds of models take a while; let other tasks run in between
        self._burning = {key for key in self._burning if key[0] in deployed}
        if tells:
            for model in self._notices.models() - deployed.keys():
                if self._reconciler.status(model) is not None:  # known and removed, not just unread
                    self._notices.drop(model)
            self._notices.keep()

    def _tell(self, model: str, spec: DeploymentSpec, states: tuple[ObjectiveState, ...], *, webhook: bool) -> None:
        kinds = {state.kind for state in states}
        self._burning -= {key for key in self._burning if key[0] == model and key[1] not in kinds}
        if webhook:  # only one instance sends alerts
            self._notices.forget(model, kinds)
        for state in states:
            key, sentence = (model, state.kind), _sentence(state)
            if webhook:
                self._notices.notify(model, state, {"model": model, "version": spec.version, "message": sentence})
            if state.burning is (key in self._burning):
                continue
            if state.burning:
                self._burning.add(key)
                self._reconciler.record_event("Warning", "ObjectiveBreached", model, sentence)
            else:
                self._burning.discard(key)
                self._reconciler.record_event("Normal", "ObjectiveRecovered", model, sentence)


def _sentence(state: ObjectiveState) -> str:
    window = max(state.windows, key=lambda one: (one.burning, one.short_rate))
    rates = (
        f"burn rate {window.long_rate:.3g} over {window.long_seconds:g} s and "
        f"{window.short_rate:.3g} over {window.short_seconds:g} s"
    )
    if state.burning:
        return f"objective missed: {state.target}; {rates}"
    return f"objective met again: {state.target}; {rates}"
