"""Reads the desired state from the registry and prepares it for action: targets with their configurations.

Everything here blocks, and the loop calls it in a thread, except for `DesiredStateResolver.from_cache`, which does no
I/O.
"""

import pickle
import sys
import threading
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from controlplane.domain.deployment import RUN_THE_SAME_FIELDS, DeploymentSettings, DeploymentSpec, Rollout
from controlplane.domain.manifest import Manifest
from controlplane.domain.names import Reference
from controlplane.domain.rollout.decision import RolloutAction, RolloutDecision, apply, deploy
from controlplane.domain.samples import Sample
from controlplane.errors import (
    CommitConflictError,
    ControlPlaneError,
    InvalidArtifactError,
    InvalidConfigError,
    InvalidInputError,
    NotFoundError,
)
from controlplane.lifecycle.signed_config import require_signed_config
from controlplane.lifecycle.state import DesiredReplica, Target
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry
from controlplane.triton.code_settings import code_settings
from controlplane.triton.instance_groups import may_use_gpu, named_gpus, wants_gpu
from controlplane.triton.layout import layout
from controlplane.triton.model_config import DIGEST_PARAMETER, build_config
from controlplane.triton.streams import sequence_idle_seconds

ACTOR = "reconciler"
_REVISIONS_READ = 12
_REVISIONS_SEARCHED = 100
_FALLBACKS = 4
_SAMPLES_KEPT_BYTES = 1024 * 1024
_SAMPLES_KEPT_TOTAL_BYTES = 64 * 1024 * 1024
_UNPACKED_KEPT = 128


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What determines where a version runs and how much memory it needs, from its configuration and its manifest.

    Attributes:
        backend: Triton's backend.
        max_batch_size: The configured largest batch; 0 without batching.
        instances: Instances on each device.
        named_gpus: The GPUs that the user's configuration names; empty if it names none.
        wants_gpu: Whether it cannot run without a GPU.
        may_use_gpu: Whether any instance runs on a GPU if one is available.
    """

    backend: str
    max_batch_size: int
    instances: int
    named_gpus: tuple[int, ...]
    wants_gpu: bool
    may_use_gpu: bool


@lru_cache(maxsize=4096)
def _shared(facts: RunFacts) -> RunFacts:
    """Return one object for all equal facts."""
    return facts


class PreparedVersion:
    """A target with all data that actions on it need. Immutable.

    Data that only actions need is compressed, so that thousands of idle deployments take little memory. What each cycle
    needs is in `facts`.

    Args:
        target: Version and configuration digest.
        manifest: The version's manifest.
        settings: The deployment's settings.
        config: Triton's configuration under the model's own name with only this version.

    Attributes:
        sequence_idle_seconds: After how long without a request a sequence ends; None without sequence batching.
    """

    __slots__ = ("_packed", "facts", "sequence_idle_seconds", "settings", "target")

    def __init__(
        self, target: Target, manifest: Manifest, settings: DeploymentSettings, config: dict[str, Any]
    ) -> None:
        self.target = target
        self.settings = settings
        self.sequence_idle_seconds = sequence_idle_seconds(config)
        self.facts = _shared(
            RunFacts(
                backend=sys.intern(manifest.backend),
                max_batch_size=int(config.get("max_batch_size", 0)),
                instances=sum(int(group.get("count", 1)) for group in config.get("instance_group") or [{}]),
                named_gpus=named_gpus(config),
                wants_gpu=wants_gpu(config),
                may_use_gpu=may_use_gpu(config),
            )
        )
        self._packed = zlib.compress(pickle.dumps((manifest, config)))

    @property
    def manifest(self) -> Manifest:
        """The version's manifest."""
        return _unpacked(self._packed)[0]

    @property
    def config(self) -> dict[str, Any]:
        """Triton's configuration under the model's own name with only this version."""
        return _unpacked(self._packed)[1]

    def config_for(self, triton_name: str, versions: Sequence[int]) -> dict[str, Any]:
        """Return the configuration under the given name and version policy; everything else stays the same."""
        return {
            **self.config,
            "name": triton_name,
            "version_policy": {"specific": {"versions": sorted(versions)}},
        }


@lru_cache(maxsize=_UNPACKED_KEPT)
def _unpacked(packed: bytes) -> tuple[Manifest, dict[str, Any]]:
    manifest, config = pickle.loads(zlib.decompress(packed))  # pickled by this process and never sent elsewhere
    return manifest, config


@dataclass(frozen=True, slots=True)
class DesiredDeployment:
    """The newest revision of a deployment, prepared for action.

    Attributes:
        revision: The revision.
        targets: The desired target first, then the fallbacks.
        history: Earlier versions of the deployment, newest first.
        prepared: The prepared versions by target.
        problem: Why no action on the desired target is possible, whatever Triton's state; empty if there is none.
        trial: The new version of a rollout in progress.
        trial_problem: Why no action on the new version is possible; empty if there is none.
    """

    revision: DeploymentRevision
    targets: tuple[Target, ...] = ()
    history: tuple[int, ...] = ()
    prepared: dict[Target, PreparedVersion] = field(default_factory=dict)
    problem: str = ""
    trial: Target | None = None
    trial_problem: str = ""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.revision.spec.model

    @property
    def sequence_idle_seconds(self) -> float | None:
        """After how long without a request a sequence ends; None if no prepared version has sequence batching."""
        found = [one.sequence_idle_seconds for one in self.prepared.values() if one.sequence_idle_seconds is not None]
        return max(found, default=None)

    @property
    def sentence(self) -> str:
        """The revision as a sentence for an event."""
        revision, spec = self.revision, self.revision.spec
        what = f"version {spec.version}" if spec.loaded and not spec.deleted else "nothing"
        why = f" ({revision.reason})" if revision.reason else ""
        return f"revision {revision.number} by {revision.actor} wants {what} loaded{why}"

    @property
    def wanted(self) -> Target:
        """The target that is to become active."""
        return self.targets[0]

    def desired(self, last_good: Target | None) -> DesiredReplica:
        """Return the planner's input for a server on which ``last_good`` was the last target to pass its proof."""
        spec = self.revision.spec
        targets = self.targets
        if last_good is not None and last_good in self.prepared and last_good not in targets[:2]:
            targets = (targets[0], last_good, *(target for target in targets[1:] if target != last_good))
        return DesiredReplica(
            model=spec.model,
            revision=self.revision.number,
            revised_at=self.revision.at,
            loaded=spec.loaded and not spec.deleted,
            deleted=spec.deleted,
            targets=targets,
            history=self.history,
            bake_seconds=spec.settings.bake_seconds,
            trial=self.trial,
        )


class DesiredStateResolver:
    """Reads deployments and prepares them. Thread-safe: cached values are immutable."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._chains: dict[str, tuple[DeploymentRevision, ...]] = {}
        self._prepared: dict[str, dict[tuple[int, str], PreparedVersion]] = {}
        self._samples: OrderedDict[str, tuple[tuple[Sample, ...], int]] = OrderedDict()
        self._guard = threading.Lock()

    def from_cache(self, model: str) -> DesiredDeployment | None:
        """Return the newest desired state if all it needs is in memory; never for a forward deploy. No I/O."""
        revision = self._registry.deployments.peek(model)
        chain = self._chains.get(model)
        if revision is None or chain is None or not _continues(chain, revision):
            return None
        chain = _extended(chain, revision)
        if _forward(chain) and revision.commit_id != self._chains[model][0].commit_id:
            return None
        if any(self._known(model, other.spec.version, other.spec.settings) is None for other in fallback_runs(chain)):
            return None
        trial = revision.spec.trial
        if trial is not None and self._known(model, trial.version, trial.settings) is None:
            return None
        self._chains[model] = chain
        return self._desired_deployment(chain)

    def read(self, model: str) -> DesiredDeployment | None:
        """Return the newest desired state of a model; None if the model was never deployed."""
        try:
            revision = self._registry.deployments.get(model, fresh=True, deleted=True)
        except NotFoundError:
            return None
        return self.of(revision)

    def follow_alias(self, desired_deployment: DesiredDeployment) -> DeploymentRevision | None:
        """Commit and return a new revision if the alias that a deployment follows has moved, else return None.

        Raises:
            ControlPlaneError: The store failed.
        """
        spec = desired_deployment.revision.spec
        reference = Reference.parse(spec.reference)
        if reference.alias is None or spec.deleted:
            return None
        try:
            version = self._registry.resolve(reference).number
        except NotFoundError:
            return None  # the alias was removed: the deployment keeps the version it pointed at
        if spec.trial is not None and version == spec.version and spec.trial.reference == spec.reference:
            why = f"alias {reference.alias} points at version {version} again"
            back = apply(spec, RolloutDecision(RolloutAction.ABORT, why), spec.trial.evidence, datetime.now(UTC))
            return self._follow(desired_deployment, back, why)
        if version == spec.version or (spec.rollout is not None and version == spec.rollout.version):
            return None  # a rollout of this version failed or is in progress
        if self._runs_code(spec.settings, reference):
            return None  # recorded by an earlier release: keys without the scope `code` may move an alias
        following = deploy(spec, reference, version, spec.settings, rollout_id=uuid.uuid4().hex, now=datetime.now(UTC))
        why = f"alias {reference.alias} {spec.version} -> {version}"
        return self._follow(desired_deployment, following.with_changes(loaded=spec.loaded), why)

    def _runs_code(self, settings: DeploymentSettings, reference: Reference) -> bool:
        try:
            return bool(code_settings(settings, self._registry.resolve(reference).format))
        except InvalidConfigError:
            return True  # recorded by an earlier release; every load refuses these settings

    def _follow(
        self, desired_deployment: DesiredDeployment, spec: DeploymentSpec, why: str
    ) -> DeploymentRevision | None:
        try:
            return self._registry.deployments.put(spec, after=desired_deployment.revision, actor=ACTOR, reason=why)
        except (CommitConflictError, NotFoundError):
            return None  # the deployment or the version was changed concurrently; the next read sees it

    def prepare(self, model: str, version: int, settings: DeploymentSettings) -> PreparedVersion:
        """Prepare a version, deployed or not; blocks.

        Raises:
            NotFoundError: No such model or version.
            InvalidInputError: The version cannot run with these settings.
        """
        return self._prepare(model, version, settings)

    def earlier(self, model: str, target: Target) -> PreparedVersion | None:
        """Return the prepared version of a target from an earlier revision; None if no revision has it. Blocks.

        A loaded version may be older than the revisions that a `DesiredDeployment` holds.

        Raises:
            ControlPlaneError: The store failed.
        """
        tried: set[str] = set()
        for revision in self._registry.deployments.history(model, limit=_REVISIONS_SEARCHED):
            key = _run_key(revision.spec.settings)
            if revision.spec.version != target.version or key in tried:
                continue
            tried.add(key)
            with suppress(InvalidInputError, NotFoundError):
                ready = self._prepare(model, target.version, revision.spec.settings)
                if ready.target == target:
                    return ready
        return None

    def takes_sequences(self, model: str) -> bool:
        """Return whether a prepared version of a model has sequence batching. No I/O."""
        return any(one.sequence_idle_seconds is not None for one in self._prepared.get(model, {}).values())

    def samples(self, prepared: PreparedVersion) -> tuple[Sample, ...]:
        """Return a target's golden samples; blocks if they are not cached."""
        golden = prepared.manifest.golden
        if golden is None:
            return ()
        return self._read_samples(prepared.manifest)

    def _read_samples(self, manifest: Manifest) -> tuple[Sample, ...]:
        digest = "" if manifest.golden is None else manifest.golden.file.sha256
        with self._guard:
            if digest in self._samples:
                self._samples.move_to_end(digest)
                return self._samples[digest][0]
        samples = self._registry.samples(manifest)
        size = sum(array.nbytes for sample in samples for array in (*sample.inputs.values(), *sample.outputs.values()))
        if manifest.golden is not None and size <= _SAMPLES_KEPT_BYTES:
            with self._guard:
                self._samples[manifest.golden.file.sha256] = (samples, size)
                while sum(kept for _, kept in self._samples.values()) > _SAMPLES_KEPT_TOTAL_BYTES:
                    self._samples.popitem(last=False)
        return samples

    def of(self, revision: DeploymentRevision) -> DesiredDeployment:
        """Return the prepared desired state of a deployment's newest revision. Blocks.

        Raises:
            ControlPlaneError: The store failed, or an object that the revision needs cannot be read.
        """
        model = revision.spec.model
        chain = self._chains.get(model)
        if revision.number == 1:
            chain = (revision,)
        elif chain is None or not _continues(chain, revision):
            chain = tuple(self._registry.deployments.history(model, limit=_REVISIONS_READ, before=revision.number + 1))
        chain = _extended(chain, revision)
        self._chains[model] = chain
        first = model not in self._prepared
        desired_deployment = self._desired_deployment(chain)
        prepared = desired_deployment.prepared.get(desired_deployment.wanted)
        if prepared and _forward(chain) and not first:  # at the start of a process, most versions are loaded already
            with suppress(ControlPlaneError):  # without the records it is proved as a candidate
                self._registry.proofs.refresh(prepared.manifest.content_digest)
        return desired_deployment

    def _desired_deployment(self, chain: tuple[DeploymentRevision, ...]) -> DesiredDeployment:
        head = chain[0]
        prepared: dict[Target, PreparedVersion] = {}
        targets: list[Target] = []
        problem = ""
        for revision in fallback_runs(chain):
            spec = revision.spec
            try:
                ready = self._prepare(spec.model, spec.version, spec.settings)
            except (InvalidInputError, NotFoundError) as error:
                if revision is head:
                    problem = str(error)
                    targets.append(Target(spec.version, ""))
                continue
            prepared[ready.target] = ready
            if ready.target not in targets:
                targets.append(ready.target)
        self._prepared[head.spec.model] = {_key(ready): ready for ready in prepared.values()}
        versions = dict.fromkeys(target.version for target in targets[1:] if target.version != head.spec.version)
        desired_deployment = DesiredDeployment(head, tuple(targets), tuple(versions), prepared, problem)
        return desired_deployment if head.spec.trial is None else self._with_trial(desired_deployment, head.spec.trial)

    def _with_trial(self, desired_deployment: DesiredDeployment, trial: Rollout) -> DesiredDeployment:
        try:
            ready = self._prepare(desired_deployment.model, trial.version, trial.settings)
        except (InvalidInputError, NotFoundError) as error:
            return replace(desired_deployment, trial_problem=str(error))
        self._prepared[desired_deployment.model] = {**self._prepared[desired_deployment.model], _key(ready): ready}
        return replace(
            desired_deployment, prepared={**desired_deployment.prepared, ready.target: ready}, trial=ready.target
        )

    def _known(self, model: str, version: int, settings: DeploymentSettings) -> PreparedVersion | None:
        return self._prepared.get(model, {}).get((version, _run_key(settings)))

    def _prepare(self, model: str, version: int, settings: DeploymentSettings) -> PreparedVersion:
        known = self._known(model, version, settings)
        if known is not None:
            return known
        manifest = self._registry.manifest(model, version)
        if not manifest.format.runs:
            raise InvalidArtifactError(
                f"{model}:{version} is {manifest.format}, which Triton cannot run; convert it to onnx or torchscript "
                "and deploy the result",
                model=model,
                version=version,
            )
        self._registry.signatures.demand(model, version, manifest)
        require_signed_config(self._registry, model, version, manifest)
        layout(manifest)  # reports layout errors before staging does
        samples = self._read_samples(manifest)
        self._registry.footprints.load(model, version)
        config = build_config(model, manifest, settings, [version], samples=samples)
        digest = str(config["parameters"][DIGEST_PARAMETER]["string_value"])
        return PreparedVersion(Target(version, digest), manifest, settings, config)


def _key(prepared: PreparedVersion) -> tuple[int, str]:
    return prepared.target.version, _run_key(prepared.settings)


def _continues(chain: tuple[DeploymentRevision, ...], revision: DeploymentRevision) -> bool:
    """Return whether a revision is the newest one in the known chain or its direct successor."""
    newest = chain[0]
    return newest.commit_id == revision.commit_id or revision.number == newest.number + 1


def _forward(chain: tuple[DeploymentRevision, ...]) -> bool:
    """Return whether the newest revision is no rollback and has a lower version to fall back to."""
    head = chain[0].spec
    back = len(chain) > 1 and head.version < chain[1].spec.version
    return not back and head.loaded and any(other.spec.version < head.version for other in fallback_runs(chain)[1:])


def _extended(chain: tuple[DeploymentRevision, ...], revision: DeploymentRevision) -> tuple[DeploymentRevision, ...]:
    if chain and chain[0].number == revision.number:
        return chain
    return (revision, *chain)[:_REVISIONS_READ]


def fallback_runs(chain: Sequence[DeploymentRevision]) -> list[DeploymentRevision]:
    """Return the newest revision and its possible fallbacks, back to the last revision that unloaded the model."""
    runs: list[DeploymentRevision] = []
    seen: set[tuple[int, str]] = set()
    for revision in chain:
        spec = revision.spec
        if revision is not chain[0] and (spec.deleted or not spec.loaded):
            break
        key = (spec.version, _run_key(spec.settings))
        if key not in seen:
            seen.add(key)
            runs.append(revision)
        if len(runs) > _FALLBACKS:
            break
    return runs


def _run_key(settings: DeploymentSettings) -> str:
    return sys.intern(settings.model_dump_json(exclude=set(RUN_THE_SAME_FIELDS)))
