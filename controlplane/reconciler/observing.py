"""Takes in what was seen: what is wanted (read from the bucket), and what is there (looks, measurements)."""

from controlplane.domain.advisories import warnings_for
from controlplane.domain.states import ServerState
from controlplane.memory.ledger import size_text
from controlplane.reconciler.actions import Prove
from controlplane.reconciler.background import Background
from controlplane.reconciler.fleet import KnownServer
from controlplane.reconciler.foreign import Foreigners
from controlplane.reconciler.messages import Cleaned, Gauged, Seen
from controlplane.reconciler.nursing import Nurse
from controlplane.reconciler.record import Backoff
from controlplane.reconciler.state import LoopState
from controlplane.reconciler.units import Unit
from controlplane.reconciler.watching import Sight
from controlplane.reconciler.wishes import Wish


class Observer:
    """Brings the loop's state up to date, and marks what that changed.

    Args:
        state: What the loop knows.
        background: Looks and measurements.
        nurse: Looks after the servers themselves.
        foreigners: Tells what others do.
        backoff: How long a failed step waits.
    """

    def __init__(
        self,
        state: LoopState,
        background: Background,
        nurse: Nurse,
        foreigners: Foreigners,
        backoff: Backoff,
    ) -> None:
        self._state = state
        self._background = background
        self._nurse = nurse
        self._foreigners = foreigners
        self._backoff = backoff

    def adopt(self, *wishes: Wish) -> None:
        """Want what these revisions want."""
        for wish in wishes:
            if self._take_in(wish):
                for server in self._state.servers.values():
                    self._state.plan_again(server, wish.model)

    def seen(self, seen: Seen) -> None:
        """Take in a look at a server."""
        server, sight = seen.server, seen.sight
        server.looking = None
        before, server.sight, server.observed_at = server.sight, sight, self._state.clock()
        well = sight.state is ServerState.READY
        if sight.state is not before.state:
            message = f"Triton {sight.version} answers" if well else sight.message
            self._state.events.add("Normal" if well else "Warning", f"Server{sight.state}", server.name, message)
        if well and sight.version != server.advised:
            server.advised = sight.version
            if warnings := warnings_for(sight.version, embedded=server.managed.embedded is not None):
                self._state.events.add("Warning", "VulnerableTriton", server.name, "; ".join(warnings))
        restarts = sight.generation != before.generation
        # An action that ended meanwhile may have left something known of a server that does not answer.
        known = any(server.units[model].facts is not None for model in server.present)
        if restarts or (not well and (known or before.state is ServerState.READY)):
            for unit in server.units.values():
                unit.lost(restarted=restarts or server.managed.embedded is None)
                server.keep_watch(unit)
            server.steward.lost(restarted=restarts)
            self._state.plan_all_again(server)
        if restarts:
            server.guard.returned(self._state.events, self._state.clock())
        if well and not server.steward.accounts.known:
            self._background.gauge(server)
        if well:
            for model in self._worth_seeing(server, None if restarts or not server.well else before):
                self._take_in_facts(server, server.unit(model), seen.began)
            if not any(server.units[model].doing for model in server.present):
                server.waits = 0
        server.well = well
        self._nurse.look(server)
        self._state.moved.add(server.name)
        if server.look_again:
            server.look_again = False
            self._background.look(server)

    def gauged(self, gauged: Gauged) -> None:
        """Take in a measurement of a server."""
        server, reading = gauged.server, gauged.reading
        server.gauging = None
        steward = server.steward
        server.vitals.metrics = reading.metrics
        if server.away or reading.generation != server.sight.generation:
            return
        self._foreigners.count(server, reading)
        present = [server.units[model] for model in server.present]
        for unit in present:
            if unit.watched(reading, gauged.began):
                self._state.plan_again(server, unit.model)
        known = steward.accounts.known
        proving = [unit.model for unit in present if unit.doing and isinstance(unit.doing.action, Prove)]
        self._background.keep(server, steward.take(reading, proving, gauged.began, self._state.clock()))
        if steward.accounts.known and not known:
            self._state.plan_all_again(server)  # nothing was begun before it was known what there is room for
        self._state.moved.add(server.name)
        for device, size in steward.unaccounted():
            self._state.events.add(
                "Warning",
                "UnaccountedMemory",
                server.name,
                f"nobody accounts for {size_text(size)} in use on {device}; they count against its budget",
            )

    def cleaned(self, cleaned: Cleaned) -> None:
        """A server's model repository was cleaned, or could not be."""
        cleaned.server.cleaning, cleaned.server.cleaned = None, cleaned.done
        self._state.plan_all_again(cleaned.server)

    def _worth_seeing(self, server: KnownServer, before: Sight | None) -> list[str]:
        """Models that a look may tell something new of.

        Args:
            server: The server, with the look.
            before: The look before, which was taken in; None: everything is new.
        """
        wishes = self._state.wishes
        if before is None:
            return list(wishes)
        return sorted((server.sight.differs(before) | server.present | server.awaited) & wishes.keys())

    def _take_in_facts(self, server: KnownServer, unit: Unit, began: int) -> None:
        """Take in what a look that began at a step shows of a model."""
        if unit.task is not None:
            return
        facts = server.sight.facts(unit.model) if unit.changed <= began else None
        if facts is None:
            # What we did since the look began is newer than the look, or it is not clear what is there.
            server.awaited.add(unit.model)
            server.look_again = server.look_again or unit.facts is None
            return
        known, record = unit.facts, unit.record
        unit.see(self._foreigners.judge(server, unit, facts))
        unit.seen = began
        server.awaited.discard(unit.model)
        server.steward.see(unit.model, facts, self._state.step, self._state.clock())
        server.keep_watch(unit)
        changed = unit.facts != known or unit.record is not record
        if changed or unit.doing is not None or unit.stale_since is not None:
            self._state.plan_again(server, unit.model)

    def _take_in(self, wish: Wish) -> bool:
        """Want what a revision wants, unless that or something newer is wanted already."""
        state = self._state
        known = state.wishes.get(wish.model)
        if known is not None and wish.revision.number <= known.revision.number:
            # The same revision again is news only where it could not be acted on, and now can: it was signed since.
            mended = wish.revision.number == known.revision.number and known.problem and not wish.problem
            if not mended:
                return False
        state.adopt(wish)
        if known is not None or not wish.revision.spec.deleted:
            state.events.add("Normal", "RevisionSeen", wish.model, wish.sentence)
        now = state.clock()
        for server in state.servers.values():
            unit = server.unit(wish.model)
            unit.adopt(wish, now, self._backoff)
            server.steward.adopt(wish.model)
            if unit.facts is None and unit.task is None and server.trouble is None:
                facts = server.sight.facts(wish.model) if not unit.changed else None
                if facts is None:
                    self._background.look(server)
                else:
                    unit.facts = self._foreigners.judge(server, unit, facts)
                    server.steward.see(wish.model, unit.facts, state.step, now)
            server.keep_watch(unit)
        return True
