"""Which servers are known to be unable to load a version, from what is observed of them and recorded of it."""

from collections.abc import Iterable, Mapping

from controlplane.domain.portability import Loads, ModelFacts, Target, check
from controlplane.lifecycle.desired import PreparedVersion
from controlplane.reconciler.server_state import TrackedServer
from controlplane.servers.target import target_of


class LoadSupport:
    """Compares versions with servers. A fact that is not known never excludes a server."""

    def __init__(self) -> None:
        self._targets: dict[str, tuple[tuple[str, int], Target]] = {}
        self._verdicts: dict[str, tuple[PreparedVersion, dict[str, str]]] = {}
        """The reasons against a model's newest version, by what a server runs versions with; empty ones allow it."""

    def target(self, server: TrackedServer) -> Target:
        """Return what a server runs versions with; determined again when it reports another version or restarts."""
        seen = (server.snapshot.version, server.snapshot.generation)
        known = self._targets.get(server.name)
        if known is None or known[0] != seen:
            known = self._targets[server.name] = (seen, target_of(server.managed, server.snapshot.version))
        return known[1]

    def refusals(self, model: str, prepared: PreparedVersion, servers: Iterable[TrackedServer]) -> Mapping[str, str]:
        """Return the servers that cannot load a version, with the reasons.

        A server on which the version runs, or has passed its proof, is not among them: what was observed there counts
        more than the rules, which know only NVIDIA's own builds.

        Args:
            model: The model.
            prepared: The version.
            servers: The servers to compare it with.
        """
        kept = self._verdicts.get(model)
        if kept is None or kept[0] is not prepared:
            kept = self._verdicts[model] = (prepared, {})
        found = {}
        for server in servers:
            if (reason := self._reason(kept[1], prepared, self.target(server))) and not _has_run(
                server, model, prepared
            ):
                found[server.name] = reason
        return found

    @staticmethod
    def _reason(reasons: dict[str, str], prepared: PreparedVersion, target: Target) -> str:
        """Return why a server cannot load a version; servers of one kind have one verdict."""
        if target.runs not in reasons:
            report = check(ModelFacts.of_manifest(prepared.manifest), target)
            reasons[target.runs] = "; ".join(report.reasons) if report.loads is Loads.NO else ""
        return reasons[target.runs]


def _has_run(server: TrackedServer, model: str, prepared: PreparedVersion) -> bool:
    """Return whether a version is loaded on a server, or passed its proof there with the same version of Triton."""
    unit = server.units.get(model)
    if unit is not None and unit.facts is not None and prepared.target.version in unit.facts.loaded:
        return True
    key = server.proof_key(model, prepared) if server.proofs is not None else None
    return key is not None and server.proofs is not None and server.proofs.known(key)
