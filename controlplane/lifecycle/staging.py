"""Checks before a load that the staged files are those of the versions to load, and repairs them. Blocks."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from controlplane.domain.manifest import Manifest
from controlplane.errors import NotFoundError
from controlplane.lifecycle.desired import DesiredStateResolver, PreparedVersion
from controlplane.registry.registry import Registry
from controlplane.servers.repository import ServerRepository
from controlplane.triton.warmup import warmup_files, warmup_names

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
        repository: ServerRepository,
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
        manifests = {version: self._manifest(model, version, prepared) for version in versions}
        return repository.make_ready(
            triton_name,
            {version: manifest for version, manifest in manifests.items() if manifest is not None},
            None if prepared is None else prepared.manifest,
            None if prepared is None else config,
            lambda: {} if prepared is None else self.warmup(prepared),
            self._registry.checkout,
        )

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
