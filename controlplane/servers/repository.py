"""The port to a server's model repository: on a disk of this machine, or on that of an agent beside the server.

`controlplane.triton.repository.ModelRepository` performs the operations in this process,
`controlplane.servers.agent.AgentRepository` has an agent perform them, which fetches the blobs itself.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from controlplane.domain.manifest import Manifest
from controlplane.triton.repository import Checkout


class TryLock(Protocol):
    """A lock that is taken if it is free. Its methods block."""

    def try_acquire(self) -> bool:
        """Take the lock if no other holder prevents it; return whether it was taken."""
        ...

    def release(self) -> None:
        """Release the lock; it must be held."""
        ...


class ServerRepository(Protocol):
    """A server's model repository. All methods block, are allowed from any thread, and can be repeated without harm.

    One model has one writer at a time. Besides the errors that are listed, every method of a repository with an agent
    raises `AgentError`.
    """

    @property
    def root(self) -> Path:
        """The folder, as the process sees it that owns it."""
        ...

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
        """Fetch the files of a version and put them into the repository, completely or not at all.

        Args:
            triton_name: The model's name in Triton.
            version: The version's number.
            manifest: The version's manifest.
            config: Written as ``config.pbtxt`` if the model has none yet.
            warmup: Files of the warm-up request, by name.
            checkout: This process's way to the blobs; an agent has its own.
            fetched: Called when the blobs have been fetched, or before an agent begins; an error that it raises ends
                the installation.

        Returns:
            Seconds spent, by stage: fetch, stage.

        Raises:
            NotFoundError: The store has lost a blob.
            DigestMismatchError: The store's copy of a blob is damaged.
            StoreFullError: The disk is full; nothing is left behind.
            StoreError: The store or the disk failed.
        """
        ...

    def make_ready(
        self,
        triton_name: str,
        versions: Mapping[int, Manifest],
        shared: Manifest | None,
        config: Mapping[str, Any] | None,
        warmup: Callable[[], Mapping[str, bytes]],
        checkout: Checkout,
    ) -> list[str]:
        """Check all files that a load reads, and repair those that are damaged.

        Args:
            triton_name: The name that is loaded.
            versions: The manifests of the versions that are loaded, by number.
            shared: The manifest whose files beside the version folders must be there; None leaves them.
            config: The configuration that is sent; None leaves ``config.pbtxt`` and the warm-up data.
            warmup: Gives the files of the warm-up request, if they are missing.
            checkout: See `install`.

        Returns:
            One text for each repair; empty if everything was intact.

        Raises:
            DigestMismatchError: A file was changed, and the store's copy of it is damaged or lost, too.
            StoreError: The store or the disk failed.
        """
        ...

    def differences(self, triton_name: str, version: int, manifest: Manifest) -> list[str] | None:
        """Return one message for each file of a version that differs from its manifest; None if it is not staged."""
        ...

    def renew(self, triton_name: str, versions: Iterable[int]) -> None:
        """Make versions look newer, so that the next load reloads them (StoreError)."""
        ...

    def remove_version(self, triton_name: str, version: int) -> bool:
        """Remove a version; return whether it existed. It must not be loaded."""
        ...

    def remove_model(self, triton_name: str) -> bool:
        """Remove a model; return whether it existed. It must not be loaded."""
        ...

    def staged(self) -> dict[str, set[int]]:
        """Return the complete versions in the repository, by Triton name; includes models without versions."""
        ...

    def space(self) -> tuple[int, int] | None:
        """Return the free and the total bytes of the disk; None if they are not known."""
        ...

    def problem(self) -> str | None:
        """Return why the agent did not answer the latest `staged`; empty if it did, None without an agent."""
        ...

    def lock(self, name: str) -> TryLock:
        """Return a lock that at most one process holds; it becomes free when its holder ends, however it ends."""
        ...

    def clean(self) -> object:
        """Remove the leftovers of a crash; call this before anything is staged. An agent does it at its start."""
        ...
