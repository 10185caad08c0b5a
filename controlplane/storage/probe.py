"""Checks once, at the start, whether a store supports commits."""

import uuid

from controlplane.errors import ObjectExistsError, UnsupportedStoreError
from controlplane.storage.base import ObjectStore

PREFIX = "probe/"
# As large as a revision may become: some gateways treat small and large bodies differently.
_SIZES_BYTES = (64, 256 * 1024)
_WHAT_WORKS = "Use AWS S3, MinIO, Ceph RGW or a folder (file:///…)."


def check_store(store: ObjectStore) -> None:
    """Try a create that must succeed and one that must fail, and check the content afterwards.

    Several gateways accept ``If-None-Match: *`` and ignore it (JuiceFS's, ``rclone serve s3``). With them, two writers
    would both assume that they committed, so such a gateway is refused before any other write.

    Raises:
        UnsupportedStoreError: The store does not honour a create-only put.
        StoreUnavailableError: The store cannot be reached, or the bucket does not exist.
        StoreAccessError: The credentials or permissions are insufficient.
    """
    for size_bytes in _SIZES_BYTES:
        key = f"{PREFIX}{uuid.uuid4().hex}"
        first, second = b"1" * size_bytes, b"2" * size_bytes
        try:
            _check_create(store, key, first, second)
        finally:
            store.delete(key)


def _check_create(store: ObjectStore, key: str, first: bytes, second: bytes) -> None:
    try:
        store.create(key, first)
    except ObjectExistsError:
        # A retry may have met the object of its own first attempt. With any other content the key was taken before.
        if store.get(key) != first:
            raise _unsupported(store, "reported that a new key already exists") from None
    try:
        store.create(key, second)
    except ObjectExistsError:
        pass
    else:
        raise _unsupported(store, "let a second writer overwrite an object that must be created only once")
    if store.get(key) != first:
        raise _unsupported(store, "rejected a second writer but stored its bytes")


def _unsupported(store: ObjectStore, what: str) -> UnsupportedStoreError:
    return UnsupportedStoreError(
        f"The store {store.url} {what}: it does not implement 'If-None-Match: *', which every commit needs. "
        f"{_WHAT_WORKS}",
        url=store.url,
    )
