"""A server's model repository on a disk of this machine: what the control plane asks of it, and an agent answers.

The steps in `repository_folder` put files into place; here they are combined into operations that can be repeated
without harm. `controlplane.servers.repository` says which operations these are, whichever process performs them.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from controlplane import tracing
from controlplane.domain.manifest import FileEntry, Manifest
from controlplane.domain.model_directory import shared_files
from controlplane.errors import DigestMismatchError, NotFoundError
from controlplane.filelock import FileLock
from controlplane.triton.layout import layout
from controlplane.triton.repository_folder import RepositoryFolder
from controlplane.triton.warmup import warmup_names

logger = logging.getLogger(__name__)

Checkout = Callable[[Manifest], AbstractContextManager[Mapping[str, Path]]]
"""Gives the files of a version as local paths by path in the artifact; none is evicted inside the block."""


class ModelRepository(RepositoryFolder):
    """One server's model repository. Thread-safe for different models; one model has one writer at a time."""

    def install(
        self,
        triton_name: str,
        version: int,
        manifest: Manifest,
        config: Mapping[str, Any] | None,
        warmup: Mapping[str, bytes],
        checkout: Checkout,
        fetched: Callable[[], None],
    ) -> dict[str, float]:
        """Fetch the files of a version and put them into the repository; see `ServerRepository.install`."""
        seconds: dict[str, float] = {}
        with timed(seconds, "fetch"):
            # The checkout pins the blobs until the links exist, so that none is evicted in between.
            files = (context := checkout(manifest)).__enter__()
        try:
            fetched()
            with timed(seconds, "stage"):
                placed = {path: files[entry.path] for path, entry in layout(manifest).items()}
                self.stage(triton_name, version, placed, config, warmup=warmup)
        finally:
            context.__exit__(None, None, None)
        return seconds

    def make_ready(
        self,
        triton_name: str,
        versions: Mapping[int, Manifest],
        shared: Manifest | None,
        config: Mapping[str, Any] | None,
        warmup: Callable[[], Mapping[str, bytes]],
        checkout: Checkout,
    ) -> list[str]:
        """Check all files that a load reads, and repair those that are damaged; see `ServerRepository.make_ready`."""
        repaired: list[str] = []
        for version, manifest in versions.items():
            repaired += self._ensure_intact(triton_name, version, manifest, checkout)
        if shared is not None:
            self._share(triton_name, shared, checkout)
        if config is not None:
            # A version that was staged under other settings has no warm-up data, or data for those settings.
            if not self.has_warmup(triton_name, warmup_names(config)):
                self.add_warmup(triton_name, warmup())
            if self.restore_config(triton_name, config):
                logger.info("%s: restored config.pbtxt", triton_name)
        return repaired

    def differences(self, triton_name: str, version: int, manifest: Manifest) -> list[str] | None:
        """Compare a staged version with its manifest; see `ServerRepository.differences`."""
        return self.check(triton_name, version, layout(manifest)) if self.has(triton_name, version) else None

    def space(self) -> tuple[int, int] | None:
        """Return the free and the total bytes of the disk; None if they cannot be read."""
        try:
            usage = shutil.disk_usage(self.root)
        except OSError:
            return None  # staging reports the error
        return usage.free, usage.total

    def problem(self) -> None:
        """Return None: there is no agent."""
        return

    def lock(self, name: str) -> FileLock:
        """Return a lock in the repository's root; see `ServerRepository.lock`."""
        return FileLock(self.root / f".{name}")  # Triton does not take it for a model

    def _ensure_intact(self, triton_name: str, version: int, manifest: Manifest, checkout: Checkout) -> list[str]:
        """Compare a staged version with its manifest, and stage it again from the cache or the store if it differs."""
        expected: dict[str, FileEntry] = layout(manifest)
        wrong = self.check(triton_name, version, expected)
        if not wrong:
            return []
        model = triton_name.partition("~")[0]
        what = f"the staged files of {model}:{version} differ from the published ones ({'; '.join(wrong[:5])})"
        try:
            with checkout(manifest) as files:
                self.restage(triton_name, version, {path: files[entry.path] for path, entry in expected.items()})
        except (DigestMismatchError, NotFoundError) as error:
            raise DigestMismatchError(
                f"{what}, and they cannot be repaired from the store: {error.message} The version is not loaded. Push "
                "the same files again, or restore the object from a backup",
                model=model,
                version=version,
            ) from error
        logger.warning("%s; they were staged again", what)
        return [f"{text} in version {version}" for text in wrong]

    def _share(self, triton_name: str, manifest: Manifest, checkout: Checkout) -> None:
        """Put the files beside the version folders into place.

        All loaded versions share them. Versions with different files have different configurations, so they are never
        loaded together, and the files are those of the version that is loaded.
        """
        files = shared_files(manifest)
        if wanted := self.lacks_shared(triton_name, files):
            with checkout(manifest) as local:
                self.put_shared(triton_name, {path: local[path] for path in wanted})
            logger.info("%s: placed %s beside the version folders", triton_name, ", ".join(wanted[:5]))


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time that the block takes to ``seconds[stage]``, and trace it under this name."""
    began = time.monotonic()
    try:
        with tracing.below(stage):
            yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - began
