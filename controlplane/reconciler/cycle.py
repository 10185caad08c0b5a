"""One ordered cycle of the loop, over the models and servers that a batch of messages has marked.

1. *Apply*: the caller has applied the messages; they marked models and servers, and decided nothing.
2. *Place*: assign servers and devices to each marked model.
3. *Decide residency*: decide which models are to be loaded on each server.
4. *Admit*: decide which pending loads get memory, and which models are evicted for them.
5. *Plan and begin*: begin the next action for each marked model on each server.

A later phase may mark models for an earlier one (a load needs memory, an eviction frees some), so the phases are
repeated until nothing is marked. A phase works on `AT_ONCE` models at most; the rest is for the next cycle, which the
caller runs after other tasks had their turn, with the messages that arrived in the meantime. Thousands of changed
models take several cycles: all are placed before the residency of any is decided, and so on.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from controlplane.lifecycle.actions import Term
from controlplane.reconciler.authority import Authority
from controlplane.reconciler.driver import ReplicaDriver
from controlplane.reconciler.load_scheduler import Admissions, LoadScheduler
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.placement import PlacementController
from controlplane.reconciler.routes import RouteTable
from controlplane.reconciler.server_state import TrackedServer

AT_ONCE = 256
"""Number of models in one phase before other tasks of the event loop have their turn."""
_ROUNDS = 16


@dataclass
class CycleReport:
    """Result of one cycle. All numbers are 0 for a cycle in which nothing had changed.

    Attributes:
        messages: The messages that were applied, by kind.
        rounds: How often the phases ran.
        placed: Models whose placement was checked.
        judged: Residency decisions that changed.
        planned: Replicas whose next action was planned.
        began: Actions that began.
        granted: Loads that got memory.
        evicted: Models that are evicted for others.
        refused: Loads that were refused.
        waiting: Loads that wait for memory.
        more: Whether marked models are left for another cycle.
    """

    messages: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    placed: int = 0
    judged: int = 0
    planned: int = 0
    began: int = 0
    granted: int = 0
    evicted: int = 0
    refused: int = 0
    waiting: int = 0
    more: bool = False


class Cycle:
    """Runs the phases. It is the only caller of the functions that implement them.

    Args:
        state: The loop's state.
        placer: Phase 2.
        arranger: Phase 4.
        driver: Phase 5.
        routes: Keeps the routes.
        authority: Permissions of this process.
    """

    def __init__(
        self,
        state: LoopState,
        placer: PlacementController,
        arranger: LoadScheduler,
        driver: ReplicaDriver,
        routes: RouteTable,
        authority: Authority,
    ) -> None:
        self._state = state
        self._placer = placer
        self._arranger = arranger
        self._driver = driver
        self._routes = routes
        self._authority = authority
        self._term: Term | None = None

    def run(self, report: CycleReport) -> CycleReport:
        """Run the phases until nothing is marked or the limit is reached, and add the results to a report."""
        state = self._state
        self._follow_authority()
        self._arranger.hold()
        for server in state.servers.values():
            for model in server.due(state.clock()):
                state.plan_again(server, model, moves=False)
        for _ in range(_ROUNDS):
            report.rounds += 1
            report.more = not self._run_phases(report)
            # Marks that are left after all rounds wait for the next message, so that models that mark each other cannot
            # cause an endless loop.
            if report.more or not self._marked():
                break
        self._routes.follow()
        return report

    def _run_phases(self, report: CycleReport) -> bool:
        """Run the phases once; return False if marked models are left for another cycle.

        A phase begins when nothing is left for the previous ones, so that no decision is made before those it depends
        on, however many models have changed.
        """
        state = self._state
        moved, state.moved = state.moved, set()
        for name in moved & state.servers.keys():
            self._follow_health(state.servers[name])
        report.placed += self._placer.place(moved, AT_ONCE)
        if self._placer.waiting:
            return False
        for server in state.servers.values():
            report.judged += self._decide_residency(server)
        if any(server.scheduler.unjudged for server in state.servers.values()):
            return False
        backlog = sum(len(server.unplanned) for server in state.servers.values())
        admissions = self._arranger.admit() if backlog <= AT_ONCE else Admissions()
        self._plan(report, admissions.granted)
        self._arranger.withdraw_unused(admissions.granted)
        self._count(report, admissions)
        return report.planned < AT_ONCE or not self._marked()

    def _follow_authority(self) -> None:
        """Mark everything if the permissions of this process have changed since the previous cycle."""
        term = self._authority.term
        if term != self._term:
            self._term = term
            for server in self._state.servers.values():
                self._state.plan_all_again(server)

    def _follow_health(self, server: TrackedServer) -> None:
        """Mark the models on a server that stopped or resumed accepting work."""
        trouble, said = server.trouble, server.said
        if trouble != said:
            server.said = trouble
            self._state.plan_all_again(server)
            self._state.moved.discard(server.name)
        self._routes.server_changed(server)

    def _decide_residency(self, server: TrackedServer) -> int:
        changed = self._state.update_residency(server, AT_ONCE)
        for model in changed:
            self._state.act_again(server, model)
        return len(changed)

    def _plan(self, report: CycleReport, granted: Iterable[tuple[TrackedServer, str]]) -> None:
        """Plan and begin the next action of marked models up to the limit per cycle, and of all loads with memory."""
        for server, model in granted:
            server.unplanned.discard(model)
            report.began += self._driver.drive(server, server.unit(model))
            report.planned += 1
        for server in self._state.servers.values():
            room = AT_ONCE - report.planned
            if not server.unplanned or room <= 0:
                continue
            chosen = sorted(server.unplanned)[:room]
            for model in chosen:
                server.unplanned.discard(model)  # one by one: if one fails, the others are planned in the next cycle
                report.began += self._driver.drive(server, server.unit(model))
            report.planned += len(chosen)

    def _marked(self) -> bool:
        return bool(self._state.moved) or any(
            server.unplanned or server.scheduler.unjudged for server in self._state.servers.values()
        )

    @staticmethod
    def _count(report: CycleReport, admissions: Admissions) -> None:
        report.granted += len(admissions.granted)
        report.evicted += admissions.evicted
        report.refused += admissions.refused
        report.waiting = admissions.waiting
