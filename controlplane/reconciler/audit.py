"""A slow background pass that finds changes that no handler marked.

The cycle works on marked models only, so a handler that forgets to mark a model leaves it unchanged. With each cycle
timer the audit computes a few models from scratch and compares them with the kept values. A difference is a defect: the
audit counts it, reports it, and repairs it by marking the model. The cost of one step does not depend on the number of
models; the duration of a full pass does.
"""

import logging
from collections import Counter
from collections.abc import Iterator

from controlplane.reconciler.driver import ReplicaDriver
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.placement import PlacementController
from controlplane.reconciler.queries import ReconcilerQueries
from controlplane.reconciler.routes import RouteTable

logger = logging.getLogger(__name__)

AT_ONCE = 32
"""Number of models that are compared with each cycle timer."""


class Audit:
    """Compares kept values with newly computed ones. Belongs to the loop.

    Args:
        state: The loop's state.
        placer: Keeps the placement.
        driver: Plans actions.
        routes: Keeps the routes.
        answers: Keeps the statuses.

    Attributes:
        missed: How many unmarked changes were found, by the kind of value that depends on them.
    """

    def __init__(
        self,
        state: LoopState,
        placer: PlacementController,
        driver: ReplicaDriver,
        routes: RouteTable,
        answers: ReconcilerQueries,
    ) -> None:
        self._state = state
        self._placer = placer
        self._driver = driver
        self._routes = routes
        self._answers = answers
        self._left: list[str] = []
        self.missed = Counter[str]()

    def look(self) -> None:
        """Compare the next few models. Must be called when the newest cycle has left nothing marked."""
        if not self._left:
            self._left = list(self._state.desired_state)
        for _ in range(min(AT_ONCE, len(self._left))):
            model = self._left.pop()
            if model not in self._state.desired_state:
                continue
            for what in self._differences(model):
                self.missed[what] += 1
                logger.warning("%s: its %s changed without being marked; computing it again", model, what)
                for server in self._state.servers.values():
                    self._state.plan_again(server, model)

    def _differences(self, model: str) -> Iterator[str]:
        """Yield the kinds of kept values of a model that would be different now."""
        if self._placer.overlooked(model):
            yield "placement"
        if self._routes.routes.get(model) != self._routes.route(model):
            yield "route"
        if self._answers.overlooked(model):
            yield "status"
        for server in self._state.servers.values():
            unit = server.units.get(model)
            if unit is None or model in server.unplanned or model in server.scheduler.unjudged or unit.task is not None:
                continue
            desired_deployment = self._state.desired_state[model]
            if server.has_place(model) and server.scheduler.overlooked(desired_deployment, unit, self._state.clock()):
                yield "residency"
            elif self._driver.overlooked(server, unit):
                yield "next action"
