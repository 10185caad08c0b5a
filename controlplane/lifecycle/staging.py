"""Checks before a load that the staged files are those of the versions to load, and repairs them. Blocks."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from controlplane.domain.manifest import FileEntry, Manifest
from controlplane.domain.model_directory import shared_files
from controlplane.errors import DigestMismatchError, NotFoundError
from controlplane.lifecycle.desired import DesiredStateResolver, PreparedVersion
from controlplane.registry.registry import Registry
from controlplane.triton.repository import ModelRepository, layout
from controlplane.triton.warmup import warmup_files, warmup_names

logger = logging.getLogger(__name__)

_LAYOUTS_KEPT = 4096


class Staging:
    """Checks staged files before loads, and repairs them from the store. Thread-safe.

    A check costs one stat call per file; a file is read only if it has changed since it was last hashed.

    Args:
        registry: Source of manifests and files.
        desired_state: Source of the golden samples from which warm-up data is made.
    """

    def __init__(self, registry: Registry, desired_state: DesiredStateResolver) -> None:
        self._registry = registry
        self._desired_state = desired_state
        self._manifests: OrderedDict[tuple[str, int], Manifest] = OrderedDict()
        self._guard = threading.Lock()

    def warmup(self, prepared: PreparedVersion) -> dict[str, bytes]:
        """Return the files of a version's warm-up request, by name; empty if it has no warm-up."""
        signature = prepared.manifest.signature
        if signature is None or not warmup_names(prepared.config):
            return {}
        return warmup_files(signature, self._desired_state.samples(prepared)[0], prepared.config)

    def make_ready(
        self,
        repository: ModelRepository,
        triton_name: str,
        model: str,
        versions: Sequence[int],
        prepared: PreparedVersion | None,
        config: Mapping[str, Any],
    ) -> list[str]:
        """Check all files that a load reads, and repair those that are damaged.

        Args:
            repository: The server's model repository.
            triton_name: The name that is loaded.
            model: The model.
            versions: The versions that are loaded.
            prepared: The version whose configuration is sent; None keeps the configuration of the loaded versions.
            config: That configuration.

        Returns:
            One text for each repair; empty if everything was intact.

        Raises:
            DigestMismatchError: A file was changed, and the store's copy of it is damaged, too.
            NotFoundError: A file was changed, and the store has lost its copy.
            StoreError: The store or the disk failed.
        """
        repaired: list[str] = []
        for version in versions:
            manifest = self._manifest(model, version, prepared)
            if manifest is not None:
                repaired += ensure_intact(self._registry, repository, triton_name, model, version, manifest)
        if prepared is not None:
            self._share(repository, triton_name, prepared.manifest)
            # A version that was staged under other settings has no warm-up data, or data for those settings.
            if not repository.has_warmup(triton_name, warmup_names(prepared.config)):
                repository.add_warmup(triton_name, self.warmup(prepared))
            if repository.restore_config(triton_name, config):
                logger.info("%s: restored config.pbtxt", triton_name)
        return repaired

    def _share(self, repository: ModelRepository, triton_name: str, manifest: Manifest) -> None:
        """Put the files beside the version folders into place.

        All loaded versions share them. Versions with different files have different configurations, so they are never
        loaded together, and the files are those of the version that is loaded.
        """
        files = shared_files(manifest)
        if wanted := repository.lacks_shared(triton_name, files):
            with self._registry.checkout(manifest) as local:
                repository.put_shared(triton_name, {path: local[path] for path in wanted})
            logger.info("%s: placed %s beside the version folders", triton_name, ", ".join(wanted[:5]))

    def _manifest(self, model: str, version: int, prepared: PreparedVersion | None) -> Manifest | None:
        """Return a version's manifest; None for a deleted version, which is still loaded."""
        key = (model, version)
        with self._guard:
            found = self._manifests.get(key)
            if prepared is not None and prepared.target.version == version:
                found = prepared.manifest
        if found is None:
            try:
                found = self._registry.manifest(model, version)
            except NotFoundError:
                return None
        with self._guard:
            self._manifests[key] = found
            self._manifests.move_to_end(key)
            if len(self._manifests) > _LAYOUTS_KEPT:
                self._manifests.popitem(last=False)
        return found


def ensure_intact(
    registry: Registry,
    repository: ModelRepository,
    triton_name: str,
    model: str,
    version: int,
    manifest: Manifest,
) -> list[str]:
    """Compare a staged version with its manifest, and stage it again from the cache or the store if it differs.

    Returns:
        One text for each damaged file; empty if the version was intact.

    Raises:
        DigestMismatchError: It was damaged, and the store's copy of a file is damaged, too.
        NotFoundError: It was damaged, and the store has lost its copy of a file.
        StoreError: The store or the disk failed.
    """
    expected: dict[str, FileEntry] = layout(manifest)
    wrong = repository.check(triton_name, version, expected)
    if not wrong:
        return []
    what = f"the staged files of {model}:{version} differ from the published ones ({'; '.join(wrong[:5])})"
    try:
        with registry.checkout(manifest) as files:
            repository.restage(triton_name, version, {path: files[entry.path] for path, entry in expected.items()})
    except (DigestMismatchError, NotFoundError) as error:
        raise DigestMismatchError(
            f"{what}, and they cannot be repaired from the store: {error.message} The version is not loaded. Push the "
            "same files again, or restore the object from a backup",
            model=model,
            version=version,
        ) from error
    logger.warning("%s; they were staged again", what)
    return [f"{text} in version {version}" for text in wrong]
