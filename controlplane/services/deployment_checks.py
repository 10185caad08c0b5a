"""Requirements that a new revision of a deployment must meet before it is recorded.

A revision that Triton can never load must not be recorded, because each later deployment would inherit its settings and
fail as well. Likewise, a key without the scope `code` must not record settings that make Triton load code or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.domain.access import Principal, Scope
from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.model import VersionEntry
from controlplane.domain.names import Reference
from controlplane.errors import InvalidArtifactError, InvalidConfigError, InvalidInputError
from controlplane.registry.registry import Registry
from controlplane.servers.requirements import missing_everywhere
from controlplane.servers.server import ManagedServer
from controlplane.triton.code_settings import code_settings
from controlplane.triton.model_config import build_config, dynamically_batched

_OF_TRITON = ("config_overrides", "parameters")


@dataclass(frozen=True, slots=True)
class Checked:
    """Settings that can be recorded.

    Attributes:
        settings: The settings.
        dropped: Which settings of the previous revision were left out, and why; empty if none were.
    """

    settings: DeploymentSettings
    dropped: str = ""


class DeploymentChecks:
    """Checks settings against a version and against the caller's permissions. Blocks, because it may read the store."""

    def __init__(self, registry: Registry, servers: Sequence[ManagedServer] = ()) -> None:
        self._registry = registry
        self._servers = servers

    def deploy(
        self,
        wanted: Reference,
        entry: VersionEntry,
        settings: DeploymentSettings,
        before: DeploymentSpec | None,
        asker: Principal | None,
    ) -> Checked:
        """Return the settings to record.

        Triton settings that an earlier release recorded and that no load can accept are left out unless the caller
        changes them: no loaded version uses them, and otherwise no deployment would succeed again.

        Args:
            wanted: The reference to deploy.
            entry: The version that it resolves to.
            settings: The requested settings.
            before: The newest desired state; None if the model is not deployed.
            asker: The caller; None if API keys are not in use.

        Raises:
            InvalidConfigError: Triton would refuse the settings, or they contradict the version's signature.
            InvalidInputError: A deployment that follows an alias has settings that load code.
            ForbiddenError: The settings need the scope `code` and the key does not have it.
            InvalidArtifactError: No server has what the version needs.
            NotFoundError: The version was deleted.
        """
        if missing := missing_everywhere(self._registry.manifest(wanted.model, entry.number), self._servers):
            raise InvalidArtifactError(missing, model=wanted.model, version=entry.number)
        checked = Checked(settings)
        try:
            self._build(wanted.model, entry.number, settings)
        except InvalidConfigError as error:
            repaired = self._repaired(wanted.model, entry.number, settings, before)
            if repaired is None:
                raise
            checked = Checked(repaired, f"settings of the previous revision left out: {error.message}")
        code = code_settings(checked.settings, entry.format)
        if code:
            self._permit(wanted, entry.number, code, before, asker)
        return checked

    def return_to(self, goal: DeploymentSpec, before: DeploymentSpec, asker: Principal | None) -> None:
        """Check the desired state of an earlier revision before it is recorded again.

        Raises:
            InvalidConfigError: Triton would refuse its settings.
            ForbiddenError: It needs the scope `code` and the key does not have it.
            NotFoundError: The version was deleted.
        """
        entry = self._registry.resolve(Reference(goal.model, version=goal.version))
        self._build(goal.model, goal.version, goal.settings)
        if code := code_settings(goal.settings, entry.format):
            self._permit(Reference(goal.model, version=goal.version), goal.version, code, before, asker)

    def _permit(
        self,
        wanted: Reference,
        version: int,
        code: dict[str, str],
        before: DeploymentSpec | None,
        asker: Principal | None,
    ) -> None:
        path = min(code)
        if wanted.alias is not None:
            raise InvalidInputError(
                f"{path} can make Triton load code or files, so the deployment must name a version "
                f"and cannot follow the alias {wanted.alias!r}, which keys without the scope 'code' "
                f"can move; deploy {wanted.model}:{version}",
                field=path,
            )
        if asker is None or self._runs_already(wanted.model, version, code, before):
            return
        asker.require_scope(Scope.CODE, f"{path} can make Triton load code or files. Remove it, or use another key: it")

    def _runs_already(self, model: str, version: int, code: dict[str, str], before: DeploymentSpec | None) -> bool:
        """Return whether this version already runs with exactly these settings, so that no code is added."""
        if before is None or before.deleted:
            return False
        pairs = [(before.version, before.settings)]
        if before.trial is not None:
            pairs.append((before.trial.version, before.trial.settings))
        for number, settings in pairs:
            if number == version:
                entry = self._registry.resolve(Reference(model, version=number))
                if code_settings(settings, entry.format) == code:
                    return True
        return False

    def _repaired(
        self, model: str, version: int, settings: DeploymentSettings, before: DeploymentSpec | None
    ) -> DeploymentSettings | None:
        """Return the settings without those that no load can accept; None if they are not the cause."""
        if before is None or before.deleted:
            return None
        recorded = before.settings if before.trial is None else before.trial.settings
        runs = before.version if before.trial is None else before.trial.version
        if any(getattr(settings, name) != getattr(recorded, name) for name in _OF_TRITON):
            return None  # the caller changed them
        if self._accepts(model, runs, recorded):
            return None  # they suit the running version, so leaving them out would change how it runs
        dropped: dict[str, object] = {}
        for name in _OF_TRITON:
            dropped[name] = {}
            repaired = settings.model_copy(update=dropped)
            if self._accepts(model, version, repaired):
                return repaired
        return None

    def _accepts(self, model: str, version: int, settings: DeploymentSettings) -> bool:
        try:
            self._build(model, version, settings)
        except InvalidConfigError:
            return False
        return True

    def _build(self, model: str, version: int, settings: DeploymentSettings) -> None:
        manifest = self._registry.manifest(model, version)
        # Golden samples decide the batch size if the settings do not. They can be large, so they are read only if
        # something depends on it.
        depends = bool(settings.config_overrides) or settings.dynamic_batching is not None
        batched = manifest.signature is not None and manifest.signature.batched and settings.max_batch_size is None
        samples = self._registry.samples(manifest) if depends and batched else ()
        build_config(model, manifest, settings, [version], samples=samples)
        if manifest.config is not None:
            return  # its author states with max_batch_size whether rows are independent
        if manifest.rows_independent is None and manifest.golden is None and dynamically_batched(settings):
            raise InvalidConfigError(
                "dynamic_batching combines requests, and without golden samples it is unknown "
                f"whether the rows of a request to {model}:{version} are independent; publish it "
                "again with --samples, or remove dynamic_batching",
                field="dynamic_batching",
            )
