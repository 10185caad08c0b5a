"""Opens the store that the settings name."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from controlplane.errors import InvalidInputError
from controlplane.settings import StoreSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.keys import check_key
from controlplane.storage.memory import MemoryStore

_ALLOWED = "Allowed are file:///absolute/path, s3://bucket/prefix and memory://."


def open_lease_store(store: ObjectStore, settings: StoreSettings, data_dir: Path, lease_seconds: float) -> ObjectStore:
    """Open a store once more for the leader's lease: its requests must not wait for others', nor hang for long.

    Args:
        store: The store as it is open already; the same comes back where there can be only one.
        settings: How to reach it.
        data_dir: Where local state lives.
        lease_seconds: The lease's duration; several requests have to fit into it.

    Raises:
        StoreError: It cannot be reached.
    """
    if isinstance(store, MemoryStore):
        return store
    seconds = min(settings.timeout_seconds, max(lease_seconds / 3, 1.0))
    retries = min(settings.retries, 1)
    return open_store(settings.model_copy(update={"timeout_seconds": seconds, "retries": retries}), data_dir)


def local_folders(settings: StoreSettings) -> tuple[Path, ...]:
    """Return the folder of a store that is one and does not lie in the data folder."""
    parts = urlsplit(settings.url)
    return (Path(unquote(parts.path)),) if parts.scheme == "file" and parts.path.startswith("/") else ()


def open_store(settings: StoreSettings, data_dir: Path) -> ObjectStore:
    """Open a store, and make sure that it is there.

    Args:
        settings: Its URL (empty: ``<data_dir>/store``) and how to reach it.
        data_dir: Where local state lives.

    Raises:
        InvalidInputError: The URL is none of those allowed.
        StoreUnavailableError: The store cannot be reached, or has no such bucket.
        StoreAccessError: Credentials or permissions.
    """
    url = settings.url
    if not url:
        return FilesystemStore(data_dir / "store")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidInputError(f"The store's URL is not a URL: {error}. {_ALLOWED}") from error
    if parts.username or parts.password:
        raise InvalidInputError(
            "The store's URL carries credentials, which would end up in logs. Give them as CONTROLPLANE_STORE__"
            "ACCESS_KEY_ID and CONTROLPLANE_STORE__SECRET_ACCESS_KEY, or by boto3's usual chain."
        )
    if parts.query or parts.fragment:
        raise InvalidInputError(f"The store's URL {url!r} has a query or a fragment. {_ALLOWED}", url=url)
    if parts.scheme == "memory" and not parts.netloc and parts.path in {"", "/"}:
        return MemoryStore()
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return FilesystemStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from controlplane.storage.s3.store import S3Store

        prefix = parts.path.strip("/")
        if prefix:
            check_key(prefix)
        store = S3Store(parts.netloc, prefix, settings)
        store.check_bucket()
        return store
    raise InvalidInputError(f"The store's URL {url!r} is not one that can be opened. {_ALLOWED}", url=url)
