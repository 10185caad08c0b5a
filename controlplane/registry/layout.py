"""Version of the bucket's layout: the object ``layout``, written once, before the store's identity.

A control plane refuses a bucket with a different layout. Otherwise it would find no data there and write new objects
beside the existing ones.
"""

from contextlib import suppress

from controlplane.errors import ObjectExistsError, ObjectNotFoundError, UnsupportedStoreError
from controlplane.storage.base import ObjectStore

LAYOUT_KEY = "layout"
LAYOUT_VERSION = 2
"""Version 2 renamed ``doors/``, ``standings/`` and ``leases/models/`` to ``gateways/``, ``conditions/``, ``holds/``."""

STORE_ID_KEY = "store-id"
"""Key of the store's identity, which is written after the layout."""


def check_layout(store: ObjectStore) -> None:
    """Refuse a store with a different layout, and mark a new store.

    Raises:
        StoreError: The store failed.
        UnsupportedStoreError: The store has a different layout.
    """
    found = _read(store)
    if found is None:
        if any(info.key == STORE_ID_KEY for info in store.list(STORE_ID_KEY, limit=1)):
            # The layout is written first, so a store with an identity has a layout object unless its layout is older.
            # It is read again because another instance may have written both in the meantime.
            found = _read(store) or 1
        else:
            with suppress(ObjectExistsError):
                store.create(LAYOUT_KEY, f"{LAYOUT_VERSION}\n".encode())
            found = _read(store)
    if found != LAYOUT_VERSION:
        raise UnsupportedStoreError(
            f"The store {store.url} has layout version {found}, but this control plane uses version "
            f"{LAYOUT_VERSION}. Use an empty bucket or prefix, or the release of the control plane that wrote this "
            f"store. A restored backup must include the object '{LAYOUT_KEY}'.",
            url=store.url,
        )


def _read(store: ObjectStore) -> int | str | None:
    try:
        text = store.get(LAYOUT_KEY).decode(errors="replace").strip()
    except ObjectNotFoundError:
        return None
    return text if not text.isdecimal() else int(text)
