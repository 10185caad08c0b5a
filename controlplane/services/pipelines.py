"""Requirements of pipelines and their members that a new revision of a deployment must meet. Blocks.

A deployment of a pipeline pins one version of each member. The member's deployment keeps that version loaded while the
pipeline needs it, beside its active version. Triton answers requests without a version with the highest one, so only
versions up to the active one can be kept, and only under the same configuration.
"""

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.manifest import Manifest
from controlplane.errors import ControlPlaneError, InUseError, InvalidConfigError, InvalidInputError, NotFoundError
from controlplane.lifecycle.desired import fallback_runs
from controlplane.registry.pins import Pin, pins_on
from controlplane.registry.registry import Registry
from controlplane.triton.model_config import DIGEST_PARAMETER, build_config

_REVISIONS_READ = 12


class PipelineChecks:
    """Resolves the members of pipelines, and protects members that are needed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def resolved(self, model: str, version: int, settings: DeploymentSettings) -> DeploymentSettings:
        """Return settings that pin a version of every member: the given ones, else the members' active versions.

        Raises:
            InvalidInputError: A member is not deployed, cannot be a member, or cannot run its version for the pipeline.
            InvalidConfigError: A version is pinned for a model that is no member.
        """
        manifest = self._registry.manifest(model, version)
        if unknown := sorted(settings.members.keys() - set(manifest.members)):
            have = f"its members are {', '.join(manifest.members)}" if manifest.members else "it has no members"
            raise InvalidConfigError(f"{unknown[0]!r} is not a member of {model}:{version}: {have}", field="members")
        pins = {}
        for member in manifest.members:
            spec = self._deployed(f"{model}:{version}", member)
            pins[member] = settings.members.get(member, spec.version)
        made = settings.model_copy(update={"members": pins})
        self._require_members(model, version, made)
        return made

    def check(self, before: DeploymentSpec | None, spec: DeploymentSpec) -> None:
        """Check a desired state before it is recorded.

        Raises:
            InUseError: A pipeline needs what it takes away.
            InvalidInputError: It is a pipeline's, and a member cannot run its version.
        """
        if before is not None and not before.deleted:
            self._require_unneeded(before, spec)
        if spec.loaded and not spec.deleted:
            self._require_members(spec.model, spec.version, spec.settings)
            if spec.trial is not None:
                self._require_members(spec.model, spec.trial.version, spec.trial.settings)

    # Members of a pipeline

    def _require_members(self, model: str, version: int, settings: DeploymentSettings) -> None:
        for member, pinned in settings.members.items():
            spec = self._deployed(f"{model}:{version}", member)
            what = f"{model}:{version} pins {member}:{pinned}"
            if not spec.loaded:
                raise InvalidInputError(
                    f"{what}, and {member} is unloaded; load it first: tritonctl load {member}", member=member
                )
            if spec.settings.members:
                raise InvalidInputError(
                    f"{what}, which is a pipeline itself; a pipeline cannot contain another one: name its members "
                    f"({', '.join(spec.settings.members)}) instead",
                    member=member,
                )
            if pinned == spec.version:
                continue
            if pinned > spec.version:
                raise InvalidInputError(
                    f"{what}, but the active version of {member} is {spec.version}, and Triton would answer requests "
                    f"for {member} with the higher one; deploy {member}:{pinned} first",
                    member=member,
                )
            if not self._runs_beside(member, pinned, spec):
                raise InvalidInputError(
                    f"{what}, but {member}:{pinned} cannot be loaded beside the active version {spec.version}: it is "
                    "not one of the newest versions that this deployment ran, or its configuration differs; pin "
                    f"{member}:{spec.version}, or roll {member} back first",
                    member=member,
                )

    def _deployed(self, pipeline: str, member: str) -> DeploymentSpec:
        try:
            return self._registry.deployments.get(member, fresh=True).spec
        except NotFoundError:
            raise InvalidInputError(
                f"{pipeline} needs {member}, which is not deployed; deploy it first: tritonctl deploy {member}",
                member=member,
            ) from None

    def _runs_beside(self, member: str, pinned: int, spec: DeploymentSpec) -> bool:
        """Return whether a lower version can be loaded beside the active one: a fallback with its configuration."""
        digest = self._digest(member, spec.version, spec.settings)
        chain = tuple(self._registry.deployments.history(member, limit=_REVISIONS_READ))
        earlier = [one.spec for one in fallback_runs(chain) if one.spec.version == pinned]
        return any(self._digest(member, pinned, one.settings) == digest for one in earlier)

    def _digest(self, model: str, version: int, settings: DeploymentSettings) -> str | None:
        try:
            manifest: Manifest = self._registry.manifest(model, version)
            config = build_config(model, manifest, settings, [version], samples=self._registry.samples(manifest))
        except (ControlPlaneError, InvalidConfigError):
            return None
        return str(config["parameters"][DIGEST_PARAMETER]["string_value"])

    # What pipelines need

    def _require_unneeded(self, before: DeploymentSpec, spec: DeploymentSpec) -> None:
        taken = spec.deleted or not spec.loaded
        versions = {spec.version} | ({spec.trial.version} if spec.trial is not None else set())
        if not taken and versions == {before.version}:
            return
        pins = [pin for pin in pins_on(self._registry.deployments, spec.model) if pin.pipeline != spec.model]
        for pin in pins:
            if spec.deleted:
                _refuse(spec.model, pin, pins, "undeployed", f"undeploy {pin.pipeline} first")
            if not spec.loaded and pin.loaded:
                _refuse(spec.model, pin, pins, "unloaded", f"unload {pin.pipeline} first")
            if spec.loaded:
                self._require_kept(spec, versions, pin, pins)

    def _require_kept(self, spec: DeploymentSpec, versions: set[int], pin: Pin, pins: list[Pin]) -> None:
        for version in sorted(versions - {pin.version}):
            done = f"changed to version {version}"
            if version < pin.version:
                _refuse(
                    spec.model,
                    pin,
                    pins,
                    done,
                    f"Triton answers requests without a version with the highest one, so {pin.version} cannot stay "
                    f"loaded; first deploy {pin.pipeline} with {spec.model}={version}, or roll it back",
                )
            settings = spec.trial.settings if spec.trial and spec.trial.version == version else spec.settings
            present = self._registry.deployments.get(spec.model, fresh=True).spec
            if self._digest(spec.model, version, settings) != self._digest(spec.model, pin.version, present.settings):
                _refuse(
                    spec.model,
                    pin,
                    pins,
                    done,
                    f"its configuration differs from that of version {pin.version}, so both cannot be loaded; undeploy "
                    f"{pin.pipeline} first, and deploy it again afterwards",
                )


def _refuse(model: str, pin: Pin, pins: list[Pin], done: str, what: str) -> None:
    others = sorted({str(other) for other in pins} - {str(pin)})
    also = f" (also by {', '.join(others)})" if others else ""
    raise InUseError(
        f"{model} cannot be {done}: {model}:{pin.version} is needed by the pipeline {pin}{also}; {what}",
        model=model,
        needed_by=sorted({str(other) for other in pins}),
    )
