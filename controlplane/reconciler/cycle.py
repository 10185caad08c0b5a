"""One ordered cycle of the loop, over what the messages of a batch have marked.

1. *Apply*: the messages were applied by the caller; they marked models and servers, and decided nothing.
2. *Place*: which server and devices each marked model gets.
3. *Decide residency*: which models shall be loaded on each server.
4. *Admit*: which waiting loads get memory, and which models make room for them.
5. *Plan and begin*: the next action for each marked model on each server.

A later phase may mark models for an earlier one (a load asks for memory, an eviction frees some), so the phases are
repeated until nothing is marked. What is left after that, or after `PLANNED_AT_ONCE` models, is for the next cycle: the
caller runs it once others had their turn.
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

PLANNED_AT_ONCE = 256
"""So many actions are planned before other tasks of the event loop have their turn."""
_ROUNDS = 16


@dataclass
class CycleReport:
    """What one cycle did. All of it is 0 for a cycle in which nothing had changed.

    Attributes:
        messages: The messages that were applied, by kind.
        rounds: How often the phases ran.
        placed: Models whose place was looked at.
        judged: Answers about residency that changed.
        planned: Models on servers whose next action was planned.
        began: Actions that began.
        granted: Loads that got memory.
        evicted: Models that make room for others.
        refused: Loads that were given up.
        waiting: Loads that wait for memory.
        more: Whether something is left for another cycle.
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
    """Runs the phases. Each of the functions that it calls for them has no other caller.

    Args:
        state: What the loop knows.
        placer: Phase 2.
        arranger: Phase 4.
        driver: Phase 5.
        routes: Follows where models can be asked.
        authority: What this process may change.
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
        """Run the phases until nothing is marked, and add what they did to a report."""
        state = self._state
        self._follow_authority()
        self._arranger.hold()
        for server in state.servers.values():
            for model in server.due(state.clock()):
                state.plan_again(server, model)
        for _ in range(_ROUNDS):
            report.rounds += 1
            moved, state.moved = state.moved, set()
            for name in moved:
                self._follow_health(state.servers[name])
            report.placed += self._placer.place(moved)
            for server in state.servers.values():
                report.judged += self._decide_residency(server)
            backlog = sum(len(server.unplanned) for server in state.servers.values())
            admissions = self._arranger.admit() if backlog <= PLANNED_AT_ONCE else Admissions()
            self._plan(report, admissions.granted)
            self._arranger.withdraw_unused(admissions.granted)
            self._count(report, admissions)
            if not self._marked() or report.planned >= PLANNED_AT_ONCE:
                break
        # What is marked after all rounds waits for the next message, so that models which mark each other cannot spin.
        report.more = report.planned >= PLANNED_AT_ONCE and self._marked()
        self._routes.follow()
        return report

    def _follow_authority(self) -> None:
        """Mark everything when what this process may change is another than in the cycle before."""
        term = self._authority.term
        if term != self._term:
            self._term = term
            for server in self._state.servers.values():
                self._state.plan_all_again(server)

    def _follow_health(self, server: TrackedServer) -> None:
        """Mark the models on a server that takes no work any more, or does again."""
        trouble, said = server.trouble, server.said
        if trouble != said:
            server.said = trouble
            self._state.plan_all_again(server)
            self._state.moved.discard(server.name)
        self._routes.server_changed(server)

    def _decide_residency(self, server: TrackedServer) -> int:
        changed = self._state.judge(server)
        for model in changed:
            self._state.plan_again(server, model)
        return len(changed)

    def _plan(self, report: CycleReport, granted: Iterable[tuple[TrackedServer, str]]) -> None:
        """Plan and begin the next action of marked models, as many as fit into one cycle; of loads with memory all."""
        for server, model in granted:
            server.unplanned.discard(model)
            report.began += self._driver.drive(server, server.unit(model))
            report.planned += 1
        for server in self._state.servers.values():
            room = PLANNED_AT_ONCE - report.planned
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
