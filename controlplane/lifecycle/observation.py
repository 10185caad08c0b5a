"""Derives the observed state of one model from a server snapshot, and updates it after a successful action. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from controlplane.domain.index_states import LOADING, READY, UNLOADING
from controlplane.domain.names import candidate_name
from controlplane.domain.states import LoadedVersion
from controlplane.lifecycle.actions import Action, CleanUp, Load, Stage, Unload
from controlplane.lifecycle.history import ReplicaHistory
from controlplane.lifecycle.state import ObservedReplica
from controlplane.servers.snapshot import ServerSnapshot
from controlplane.triton.instance_groups import Gpus

NONE: Mapping[str, str] = MappingProxyType({})
NOWHERE: Mapping[str, Gpus | None] = MappingProxyType({})
_EMPTY = 0
"""Stands for a candidate folder that contains no version; such a folder is a leftover, too."""


@dataclass(frozen=True, slots=True)
class AppliedConfig:
    """The configuration of our newest load, as Triton reports it.

    Attributes:
        loaded: The versions that it was loaded with.
        digest: The digest in it.
        fingerprint: Fingerprint of the complete configuration, including the fields that Triton filled in.
        gpus: The GPUs that the load requested.
    """

    loaded: frozenset[int]
    digest: str
    fingerprint: str
    gpus: Gpus | None


@dataclass(frozen=True, slots=True)
class ReplicaObservation:
    """The part of `ObservedReplica` that snapshots show; the common attributes are documented there.

    Attributes:
        fingerprint: Fingerprint of the complete configuration that Triton reports for the loaded versions; empty if no
            snapshot was taken since the load.
        externally_modified: Whether another client loaded a changed copy of our configuration, with our digest in it.
        gpus: Numbers of the GPUs that the versions loaded under the own name use; empty means the host, None means
            unknown.
        said_gpus: The GPUs that their load named; None if it left the choice to Triton. Another load that keeps a
            version loaded must name the same GPUs, or Triton loads that version again.
    """

    loaded: frozenset[int] = frozenset()
    digest: str | None = None
    loading: bool = False
    leaving: frozenset[int] = frozenset()
    staged: frozenset[int] = frozenset()
    candidate: int | None = None
    candidate_digest: str | None = None
    candidate_leaving: bool = False
    candidate_staged: frozenset[int] = frozenset()
    fingerprint: str = ""
    externally_modified: bool = False
    gpus: Gpus | None = None
    said_gpus: Gpus | None = None

    @classmethod
    def of(
        cls,
        model: str,
        index: Iterable[LoadedVersion],
        digests: Mapping[str, str | None],
        staged: Mapping[str, set[int]],
        fingerprints: Mapping[str, str] = NONE,
        gpus: Mapping[str, Gpus | None] = NOWHERE,
        said_gpus: Mapping[str, Gpus | None] = NOWHERE,
    ) -> "ReplicaObservation":
        """Extract one model's observation from the data of a server snapshot.

        Args:
            model: The model's name.
            index: The server's repository index.
            digests: Configuration digests of loaded models, by Triton name.
            staged: Versions in the model repository, by Triton name.
            fingerprints: Fingerprints of complete configurations, by Triton name.
            gpus: GPUs of loaded models, by Triton name.
            said_gpus: The GPUs that the load named, likewise.
        """
        candidate = candidate_name(model)
        states: dict[tuple[str, str], set[int]] = {}
        for entry in index:
            if entry.model in (model, candidate):
                states.setdefault((entry.model, entry.state), set()).add(entry.version)
        made = cls(
            loaded=frozenset(states.get((model, READY), ())),
            digest=digests.get(model),
            loading=bool((model, LOADING) in states or (candidate, LOADING) in states),
            leaving=frozenset(states.get((model, UNLOADING), ())),
            staged=frozenset(staged.get(model, ())),
            candidate=max(states.get((candidate, READY), ()), default=None),
            candidate_digest=digests.get(candidate),
            candidate_leaving=(candidate, UNLOADING) in states,
            candidate_staged=frozenset(staged[candidate] or {_EMPTY}) if candidate in staged else frozenset(),
            fingerprint=fingerprints.get(model, ""),
            gpus=gpus.get(model),
            said_gpus=said_gpus.get(model),
        )
        return NOTHING if made == NOTHING else made

    def differs(self, later: "ReplicaObservation") -> bool:
        """Return whether the later observation shows another configuration or other GPUs."""
        moved = self.gpus is not None and later.gpus is not None and self.gpus != later.gpus
        return self.digest != later.digest or moved

    def keeps(self, load: Load) -> bool:
        """Return whether a load keeps a loaded version as it is, and must therefore not change its configuration."""
        same = self.digest == load.target.digest and not self.externally_modified
        return same and not load.candidate and not load.reload and not self.loaded.isdisjoint(load.versions)

    def gpus_to_say(self, load: Load, place: Gpus | None) -> Gpus | None:
        """Return the GPUs that a load names in its configuration; None leaves them to Triton.

        Two loads of one version on the same devices must send the same configuration except for the version policy:
        Triton loads a version again when anything else differs. Therefore a load that keeps a version names the GPUs
        that the version's own load named, even if Triton's choice, or the model's assignment, has become known since.

        Args:
            load: The load.
            place: The GPUs that the model is assigned, as `asked_gpus` returns them.
        """
        return self.said_gpus if self.keeps(load) else place

    def after(self, action: Action, gpus: Gpus | None = None) -> "ReplicaObservation":
        """Return the observation after a successful action, without asking Triton again.

        Args:
            action: The action.
            gpus: The GPUs that a load named.
        """
        match action:
            case Stage(target=target, candidate=True):
                return replace(self, candidate_staged=self.candidate_staged | {target.version})
            case Stage(target=target):
                staged = self.staged | {target.version}
                if target.version not in self.candidate_staged:
                    return replace(self, staged=staged)
                # The repository moved the version out of the candidate's folder, which now contains no version.
                return replace(
                    self, staged=staged, candidate_staged=(self.candidate_staged - {target.version}) | {_EMPTY}
                )
            case Load(target=target, candidate=True):
                return replace(self, candidate=target.version, candidate_digest=target.digest)
            case Load(target=target, versions=versions):
                dropped = self.loaded - set(versions)
                return replace(
                    self,
                    loaded=frozenset(versions),
                    digest=target.digest,
                    leaving=self.leaving | dropped,
                    fingerprint="",
                    externally_modified=False,
                    gpus=self.gpus if self.keeps(action) else gpus,
                    said_gpus=gpus,
                )
            case Unload(candidate=True):
                return replace(self, candidate=None, candidate_digest=None, candidate_leaving=False)
            case Unload():
                return replace(
                    self,
                    loaded=frozenset(),
                    digest=None,
                    leaving=frozenset(),
                    fingerprint="",
                    externally_modified=False,
                    gpus=None,
                    said_gpus=None,
                )
            case CleanUp(versions=versions, candidate=candidate, model=model):
                return replace(
                    self,
                    staged=frozenset() if model else self.staged - set(versions),
                    candidate_staged=frozenset() if candidate else self.candidate_staged,
                )
        return self

    def with_record(self, record: ReplicaHistory) -> ObservedReplica:
        """Return the planner's input, which combines the observation and the history."""
        return ObservedReplica(
            loaded=self.loaded,
            digest=None if self.externally_modified else self.digest,
            loading=self.loading,
            leaving=self.leaving,
            staged=self.staged,
            marks=record.marks,
            candidate=self.candidate,
            candidate_digest=self.candidate_digest,
            candidate_leaving=self.candidate_leaving,
            candidate_staged=self.candidate_staged,
            candidate_mark=record.candidate_mark,
            cleared=record.cleared,
            failures=record.failures,
            switched=record.switched,
            hold_until=record.hold_until,
        )


def observed(snapshot: ServerSnapshot, model: str) -> ReplicaObservation | None:
    """Return the observation of a model; None if the snapshot is inconclusive.

    A snapshot is inconclusive if it lacks the configuration of a loaded version, or if the version was unloaded before
    its configuration could be read.
    """
    entries = snapshot.by_model.get(model, [])
    if any(snapshot.configs.get(name) == {} for name in (model, candidate_name(model))):
        return None
    if any(entry.state == READY and entry.model not in snapshot.configs for entry in entries):
        return None
    return ReplicaObservation.of(
        model, entries, snapshot.digests, snapshot.staged, snapshot.fingerprints, snapshot.gpus, snapshot.said_gpus
    )


NOTHING = ReplicaObservation()
"""Nothing of a model is on the server. Shared, since most models of a large registry are in this state."""
