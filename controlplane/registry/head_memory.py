"""The newest revisions that this instance has seen, stored in its data folder.

A process that starts after a store lost a revision cannot detect the loss from the store. This memory lets it detect
the loss, and lets an operator restore the revision. It is a hint, not the source of truth: it may be deleted at any
time, which only loses this instance's knowledge of earlier heads.

::

    <root>/<store id>/models/resnet.json    the newest revision of models/resnet as committed, with its stamp

The store id is an object in the store, so a different store at the same location is not mistaken for one that lost
everything.
"""

import json
import logging
import os
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from controlplane.errors import ControlPlaneError, ObjectExistsError, ObjectNotFoundError
from controlplane.registry.layout import STORE_ID_KEY, check_layout
from controlplane.registry.revision import Revision
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)


class HeadMemory:
    """Memory of heads in a folder. Safe to use from several threads; only one process may use it at a time.

    Args:
        root: The folder of this store; created when it is needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._kept: dict[str, int] = {}
        self._failing = False

    def get(self, chain: str) -> Revision | None:
        """Return the newest known revision of a chain; None if there is none or it is unreadable."""
        path = self._path(chain)
        try:
            document = json.loads(path.read_bytes())
            stamp = str(document.pop("stamp", ""))
            revision = replace(Revision.from_json(json.dumps(document), str(path)), stamp=stamp)
        except OSError:
            return None
        except (ControlPlaneError, ValueError, AttributeError) as error:
            logger.warning("ignoring the unreadable local record of the head of %s: %s", chain, error)
            return None
        self._kept[chain] = _identity(revision)
        return revision

    def put(self, chain: str, revision: Revision) -> None:
        """Remember a revision. A disk error is only logged."""
        if self._kept.get(chain) == _identity(revision):
            return
        path, text = self._path(chain), json.dumps({**revision.document(), "stamp": revision.stamp})
        try:
            try:
                _write(path, text)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _write(path, text)
        except OSError as error:
            if not self._failing:
                logger.warning("failed to write the local record of heads in %s: %s", self._root, error.strerror)
            self._failing = True
            return
        self._failing = False
        self._kept[chain] = _identity(revision)

    def names(self) -> list[str]:
        """Return the names of all remembered chains."""
        paths = self._root.rglob("*.json")
        return sorted(str(path.relative_to(self._root)).removesuffix(".json") for path in paths)

    def _path(self, chain: str) -> Path:
        return self._root / f"{chain}.json"


def _write(path: Path, text: str) -> None:
    """Write a private file in one step; a first start writes thousands of them."""
    temporary = f"{path.parent}/.{uuid.uuid4().hex}.tmp"
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    os.replace(temporary, path)  # noqa: PTH105 - a Path for each file would take longer than the rest


def _identity(revision: Revision) -> int:
    return hash((revision.commit_id, revision.stamp))


def store_id(store: ObjectStore, *, create: bool = True) -> str:
    """Return the store's identity; create it if the store has none.

    Args:
        store: The store.
        create: Whether to create a missing identity; otherwise the result is empty.

    Raises:
        StoreError: The store failed.
    """
    try:
        return store.get(STORE_ID_KEY).decode(errors="replace").strip()
    except ObjectNotFoundError:
        if not create:
            return ""
    with suppress(ObjectExistsError):
        store.create(STORE_ID_KEY, f"{uuid.uuid4().hex}\n".encode())
    return store.get(STORE_ID_KEY).decode(errors="replace").strip()


def open_memory(store: ObjectStore, root: Path) -> HeadMemory:
    """Check the store's layout and return the memory of its heads, in a subfolder of ``root``.

    Raises:
        StoreError: The store failed.
        UnsupportedStoreError: The store has a different layout.
    """
    check_layout(store)
    identity = store_id(store)
    safe = identity if identity.isalnum() and len(identity) <= 64 else uuid.uuid5(uuid.NAMESPACE_OID, identity).hex
    return HeadMemory(root / safe)
