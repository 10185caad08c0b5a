"""What is wanted, read from the registry and made ready to be acted on: targets with their configurations.

Everything here blocks; the loop calls it in a thread, except for `Wishes.quick`, which does no I/O.
"""

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from controlplane.domain.deployment import RUN_THE_SAME_FIELDS, DeploymentSettings, DeploymentSpec, Rollout
from controlplane.domain.manifest import Manifest
from controlplane.domain.names import Reference
from controlplane.domain.rollout import RolloutAction, RolloutDecision, apply, deploy
from controlplane.domain.samples import Sample
from controlplane.errors import (
    CommitConflictError,
    ControlPlaneError,
    InvalidArtifactError,
    InvalidConfigError,
    InvalidInputError,
    NotFoundError,
)
from controlplane.reconciler.types import DesiredModel, Target
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry
from controlplane.triton.code_settings import code_settings
from controlplane.triton.model_config import DIGEST_PARAMETER, build_config
from controlplane.triton.repository import layout

ACTOR = "reconciler"
_REVISIONS_READ = 12
_REVISIONS_SEARCHED = 100
_FALLBACKS = 4
_SAMPLES_KEPT_BYTES = 1024 * 1024
_PREPARED_KEPT = 512


@dataclass(frozen=True)
class Prepared:
    """A target with all that acting on it needs.

    Attributes:
        target: Version and configuration digest.
        manifest: The version's manifest.
        settings: The deployment's settings.
        config: Triton's configuration under the model's own name with this version alone.
        samples: The golden samples, where they are small enough to keep; None means read them.
    """

    target: Target
    manifest: Manifest
    settings: DeploymentSettings
    config: dict[str, Any]
    samples: tuple[Sample, ...] | None

    def config_for(self, triton_name: str, versions: Sequence[int]) -> dict[str, Any]:
        """Return the configuration under a name with a version policy; nothing else differs."""
        return {
            **self.config,
            "name": triton_name,
            "version_policy": {"specific": {"versions": sorted(versions)}},
        }


@dataclass(frozen=True)
class Wish:
    """The newest revision of a deployment, made ready.

    Attributes:
        revision: The revision.
        targets: What is wanted first, then what to fall back to.
        history: Versions it had before, newest first.
        prepared: By target.
        problem: Why what is wanted cannot be acted on, whatever Triton says; empty when it can.
        trial: The new version of a rollout that is under way.
        trial_problem: Why that cannot be acted on; empty when it can.
    """

    revision: DeploymentRevision
    targets: tuple[Target, ...] = ()
    history: tuple[int, ...] = ()
    prepared: dict[Target, Prepared] = field(default_factory=dict)
    problem: str = ""
    trial: Target | None = None
    trial_problem: str = ""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.revision.spec.model

    @property
    def sentence(self) -> str:
        """The revision, for an event."""
        revision, spec = self.revision, self.revision.spec
        what = f"version {spec.version}" if spec.loaded and not spec.deleted else "nothing"
        why = f" ({revision.reason})" if revision.reason else ""
        return f"revision {revision.number} by {revision.actor} wants {what} loaded{why}"

    @property
    def wanted(self) -> Target:
        """The target that shall answer."""
        return self.targets[0]

    def desired(self, last_good: Target | None) -> DesiredModel:
        """Return the planner's view for a server on which ``last_good`` answered as it should."""
        spec = self.revision.spec
        targets = self.targets
        if last_good is not None and last_good in self.prepared and last_good not in targets[:2]:
            targets = (targets[0], last_good, *(target for target in targets[1:] if target != last_good))
        return DesiredModel(
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


class Wishes:
    """Reads deployments and prepares them. Safe to use from several threads: what it keeps never changes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._chains: dict[str, tuple[DeploymentRevision, ...]] = {}
        self._prepared: dict[tuple[str, int, str], Prepared] = {}

    def quick(self, model: str) -> Wish | None:
        """Return the newest wish if all it needs is in memory, else None. No I/O."""
        revision = self._registry.deployments.peek(model)
        chain = self._chains.get(model)
        if revision is None or chain is None or not _continues(chain, revision):
            return None
        chain = _extended(chain, revision)
        if any(self._known(model, other.spec.version, other.spec.settings) is None for other in _runs(chain)):
            return None
        trial = revision.spec.trial
        if trial is not None and self._known(model, trial.version, trial.settings) is None:
            return None
        self._chains[model] = chain
        return self._wish(chain)

    def read(self, model: str) -> Wish | None:
        """Return the newest wish for a model; None where it was never deployed."""
        try:
            revision = self._registry.deployments.get(model, fresh=True, deleted=True)
        except NotFoundError:
            return None
        return self._of(revision)

    def read_all(self) -> tuple[dict[str, Wish], dict[str, str]]:
        """Return the newest wish of every deployment, the removed ones included, and why others cannot be read now."""
        wishes: dict[str, Wish] = {}
        unread: dict[str, str] = {}
        for revision in self._registry.deployments.list(deleted=True, unreadable=unread):
            try:
                wishes[revision.spec.model] = self._of(revision)
            except ControlPlaneError as error:
                unread[revision.spec.model] = f"revision {revision.number} cannot be read now: {error}"
        return wishes, unread

    def follow_alias(self, wish: Wish) -> DeploymentRevision | None:
        """Commit a revision where the alias that a deployment follows has moved; return it.

        Raises:
            ControlPlaneError: The store failed.
        """
        spec = wish.revision.spec
        reference = Reference.parse(spec.reference)
        if reference.alias is None or spec.deleted:
            return None
        try:
            version = self._registry.resolve(reference).number
        except NotFoundError:
            return None  # the alias was removed: what it pointed at goes on
        if spec.trial is not None and version == spec.version and spec.trial.reference == spec.reference:
            why = f"alias {reference.alias} points at version {version} again"
            back = apply(spec, RolloutDecision(RolloutAction.ABORT, why), spec.trial.evidence, datetime.now(UTC))
            return self._follow(wish, back, why)
        if version == spec.version or (spec.rollout is not None and version == spec.rollout.version):
            return None  # what the alias points at was tried, or is being tried
        if self._runs_code(spec.settings, reference):
            return None  # recorded by an earlier release: keys without the scope `code` may move an alias
        following = deploy(spec, reference, version, spec.settings, rollout_id=uuid.uuid4().hex, now=datetime.now(UTC))
        why = f"alias {reference.alias} {spec.version} -> {version}"
        return self._follow(wish, following.with_changes(loaded=spec.loaded), why)

    def _runs_code(self, settings: DeploymentSettings, reference: Reference) -> bool:
        try:
            return bool(code_settings(settings, self._registry.resolve(reference).format))
        except InvalidConfigError:
            return True  # recorded by an earlier release, and refused by every load

    def _follow(self, wish: Wish, spec: DeploymentSpec, why: str) -> DeploymentRevision | None:
        try:
            return self._registry.deployments.put(spec, after=wish.revision, actor=ACTOR, reason=why)
        except (CommitConflictError, NotFoundError):
            return None  # somebody changed the deployment or the version; the next look sees it

    def prepare(self, model: str, version: int, settings: DeploymentSettings) -> Prepared:
        """Make a version ready that need not be deployed; blocks.

        Raises:
            NotFoundError: No such model or version.
            InvalidInputError: It cannot be run so.
        """
        return self._prepare(model, version, settings)

    def earlier(self, model: str, target: Target) -> Prepared | None:
        """Return a target of an earlier revision, made ready; None where no revision has it. Blocks.

        What is loaded may be older than the revisions that a `Wish` holds.

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

    def samples(self, prepared: Prepared) -> tuple[Sample, ...]:
        """Return a target's golden samples; blocks where they are not kept."""
        return self._registry.samples(prepared.manifest) if prepared.samples is None else prepared.samples

    def _of(self, revision: DeploymentRevision) -> Wish:
        model = revision.spec.model
        chain = self._chains.get(model)
        if chain is None or not _continues(chain, revision):
            chain = tuple(self._registry.deployments.history(model, limit=_REVISIONS_READ, before=revision.number + 1))
        chain = _extended(chain, revision)
        self._chains[model] = chain
        return self._wish(chain)

    def _wish(self, chain: tuple[DeploymentRevision, ...]) -> Wish:
        head = chain[0]
        prepared: dict[Target, Prepared] = {}
        targets: list[Target] = []
        problem = ""
        for revision in _runs(chain):
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
        versions = dict.fromkeys(target.version for target in targets[1:] if target.version != head.spec.version)
        wish = Wish(head, tuple(targets), tuple(versions), prepared, problem)
        return wish if head.spec.trial is None else self._with_trial(wish, head.spec.trial)

    def _with_trial(self, wish: Wish, trial: Rollout) -> Wish:
        try:
            ready = self._prepare(wish.model, trial.version, trial.settings)
        except (InvalidInputError, NotFoundError) as error:
            return replace(wish, trial_problem=str(error))
        return replace(wish, prepared={**wish.prepared, ready.target: ready}, trial=ready.target)

    def _known(self, model: str, version: int, settings: DeploymentSettings) -> Prepared | None:
        return self._prepared.get((model, version, _run_key(settings)))

    def _prepare(self, model: str, version: int, settings: DeploymentSettings) -> Prepared:
        known = self._known(model, version, settings)
        if known is not None:
            return known
        manifest = self._registry.manifest(model, version)
        if manifest.format.backend is None:
            raise InvalidArtifactError(
                f"{model}:{version} is {manifest.format}, which Triton cannot run; convert it to onnx or torchscript "
                "and deploy the result",
                model=model,
                version=version,
            )
        self._registry.signatures.demand(model, version, manifest)
        layout(manifest)  # says early what staging would say
        samples = self._registry.samples(manifest)
        self._registry.footprints.load(model, version)
        config = build_config(model, manifest, settings, [version], samples=samples)
        digest = str(config["parameters"][DIGEST_PARAMETER]["string_value"])
        size = sum(array.nbytes for sample in samples for array in (*sample.inputs.values(), *sample.outputs.values()))
        prepared = Prepared(
            Target(version, digest), manifest, settings, config, samples if size <= _SAMPLES_KEPT_BYTES else None
        )
        if len(self._prepared) >= _PREPARED_KEPT:
            self._prepared.clear()  # what is in use is held by the wishes
        self._prepared[model, version, _run_key(settings)] = prepared
        return prepared


def _continues(chain: tuple[DeploymentRevision, ...], revision: DeploymentRevision) -> bool:
    """Whether a revision is the newest of what is known of its chain, or the next one."""
    newest = chain[0]
    return newest.commit_id == revision.commit_id or revision.number == newest.number + 1


def _extended(chain: tuple[DeploymentRevision, ...], revision: DeploymentRevision) -> tuple[DeploymentRevision, ...]:
    if chain and chain[0].number == revision.number:
        return chain
    return (revision, *chain)[:_REVISIONS_READ]


def _runs(chain: Sequence[DeploymentRevision]) -> list[DeploymentRevision]:
    """The revisions that say what to run: the newest and those before it, as far as somebody wanted the model off."""
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
    return settings.model_dump_json(exclude=set(RUN_THE_SAME_FIELDS))
