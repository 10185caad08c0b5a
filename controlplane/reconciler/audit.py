"""A slow pass over everything, which finds changes that nobody marked.

The cycle works on marked models alone, so a handler that forgets to mark one would leave it as it is. With each cycle
timer a few models are computed from scratch and compared with what is kept of them. A difference is a defect: it is
counted, reported, and repaired by marking the model. What the pass costs does not depend on how many models there are;
how long it takes to come round does.
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
"""So many models are compared with each cycle timer."""


class Audit:
    """Compares what is kept with what would be computed now. Belongs to the loop.

    Args:
        state: What the loop knows.
        placer: Keeps the placement.
        driver: Plans actions.
        routes: Keeps the routes.
        answers: Keeps the statuses.

    Attributes:
        missed: How many changes were found that nobody had marked, by what depends on them.
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
        """Compare the next few models. To be called when the newest cycle has left nothing marked."""
        if not self._left:
            self._left = list(self._state.desired_state)
        for _ in range(min(AT_ONCE, len(self._left))):
            model = self._left.pop()
            if model not in self._state.desired_state:
                continue
            for what in self._differences(model):
                self.missed[what] += 1
                logger.warning("%s: its %s changed and was not marked to be computed again; it is now", model, what)
                for server in self._state.servers.values():
                    self._state.plan_again(server, model)

    def _differences(self, model: str) -> Iterator[str]:
        """Yield the names of what is kept of a model and would be another one now."""
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
