"""The newest revisions that this instance has seen, in its data folder.

A process that starts after a store lost a revision cannot know it from the store. This memory lets it notice the loss,
and lets an operator restore the revision. It is a hint and not a record: it may be deleted at any time, and then only
this instance's knowledge of the time before is gone.

::

    <root>/<store id>/models/resnet.json    the newest revision of models/resnet as it was committed, with its stamp

The store id is an object in the store, so another store in the same place is not taken for one that lost everything.
"""

import json
import logging
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
    """Remembers heads in a folder. Safe to use from several threads; for one process at a time.

    Args:
        root: The folder of this store; made when it is needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._kept: dict[str, str] = {}
        self._failing = False

    def get(self, chain: str) -> Revision | None:
        """Return the newest revision that was seen of a chain; None where nothing (readable) is remembered."""
        path = self._path(chain)
        try:
            document = json.loads(path.read_bytes())
            stamp = str(document.pop("stamp", ""))
            revision = replace(Revision.from_json(json.dumps(document), str(path)), stamp=stamp)
        except OSError:
            return None
        except (ControlPlaneError, ValueError, AttributeError) as error:
            logger.warning("ignoring what was remembered of %s: %s", chain, error)
            return None
        self._kept[chain] = _identity(revision)
        return revision

    def put(self, chain: str, revision: Revision) -> None:
        """Remember a revision. Where the disk refuses it, that is logged and nothing else happens."""
        if self._kept.get(chain) == _identity(revision):
            return
        path = self._path(chain)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_text(json.dumps({**json.loads(revision.to_json()), "stamp": revision.stamp}, indent=2))
            temporary.chmod(0o600)
            temporary.replace(path)
        except OSError as error:
            if not self._failing:
                logger.warning("cannot remember heads in %s: %s", self._root, error.strerror)
            self._failing = True
            return
        self._failing = False
        self._kept[chain] = _identity(revision)

    def names(self) -> list[str]:
        """Return the names of all chains of which something is remembered."""
        paths = self._root.rglob("*.json")
        return sorted(str(path.relative_to(self._root)).removesuffix(".json") for path in paths)

    def _path(self, chain: str) -> Path:
        return self._root / f"{chain}.json"


def _identity(revision: Revision) -> str:
    return f"{revision.commit_id} {revision.stamp}"


def store_id(store: ObjectStore, *, create: bool = True) -> str:
    """Return the store's identity; a store that has none gets one.

    Args:
        store: The store.
        create: Whether to give it one; otherwise the identity is empty.

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
    """Check the store's layout, and return the memory of its heads below a folder.

    Raises:
        StoreError: The store failed.
        UnsupportedStoreError: The store has another layout.
    """
    check_layout(store)
    identity = store_id(store)
    safe = identity if identity.isalnum() and len(identity) <= 64 else uuid.uuid5(uuid.NAMESPACE_OID, identity).hex
    return HeadMemory(root / safe)
