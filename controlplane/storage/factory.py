"""Opens the store that the settings specify."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from controlplane.errors import InvalidInputError
from controlplane.settings import StoreSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.keys import check_key
from controlplane.storage.memory import MemoryStore

_ALLOWED = "Use file:///absolute/path, s3://bucket/prefix or memory://."


def open_lease_store(store: ObjectStore, settings: StoreSettings, data_dir: Path, lease_seconds: float) -> ObjectStore:
    """Open a second connection to a store, so that lease requests neither queue behind others nor hang for long.

    Args:
        store: The store that is already open; it is returned if no second connection is possible.
        settings: The connection settings.
        data_dir: The folder of local state.
        lease_seconds: The lease's duration; several requests must fit into it.

    Raises:
        StoreError: The store cannot be reached.
    """
    if isinstance(store, MemoryStore):
        return store
    seconds = min(settings.timeout_seconds, max(lease_seconds / 3, 1.0))
    retries = min(settings.retries, 1)
    return open_store(settings.model_copy(update={"timeout_seconds": seconds, "retries": retries}), data_dir)


def local_folders(settings: StoreSettings) -> tuple[Path, ...]:
    """Return the folder of a folder store that is outside the data folder; empty otherwise."""
    parts = urlsplit(settings.url)
    return (Path(unquote(parts.path)),) if parts.scheme == "file" and parts.path.startswith("/") else ()


def open_store(settings: StoreSettings, data_dir: Path) -> ObjectStore:
    """Open a store and check that it exists.

    Args:
        settings: The URL (empty: ``<data_dir>/store``) and the connection settings.
        data_dir: The folder of local state.

    Raises:
        InvalidInputError: The URL has no supported form.
        StoreUnavailableError: The store cannot be reached, or the bucket does not exist.
        StoreAccessError: The credentials or permissions are insufficient.
    """
    url = settings.url
    if not url:
        return FilesystemStore(data_dir / "store")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidInputError(f"The store's URL is not valid: {error}. {_ALLOWED}") from error
    if parts.username or parts.password:
        raise InvalidInputError(
            "The store's URL contains credentials, which would appear in logs. Set "
            "CONTROLPLANE_STORE__ACCESS_KEY_ID and CONTROLPLANE_STORE__SECRET_ACCESS_KEY instead, or use one of "
            "boto3's credential sources."
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
    raise InvalidInputError(f"The store's URL {url!r} is not supported. {_ALLOWED}", url=url)
