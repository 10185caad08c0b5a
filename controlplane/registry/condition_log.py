"""Persists the conditions of deployments: a chain of small records for each model, ``conditions/<model>/``.

The leader writes a record at each transition. A restarted control plane, or another leader, reads from it what it
cannot observe: since when a condition holds, and which notifications are due. The newest few records are kept.
"""

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from controlplane.errors import CommitConflictError, DamagedRevisionError
from controlplane.registry.chain import Chain, Revision
from controlplane.storage.base import ObjectInfo, ObjectStore

logger = logging.getLogger(__name__)

PREFIX = "conditions/"
_KEPT = 2
_READERS = 8


class ConditionLog:
    """Reads and commits the conditions of deployments. Blocks; safe to use from several threads.

    A record is a JSON object with named parts; each part is written by one component of the control plane.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[str, Revision | None] = {}
        self._guard = threading.Lock()

    def all(self) -> dict[str, Mapping[str, Any]]:
        """Read the newest record of every model, by model.

        Raises:
            StoreError: The store failed.
        """
        newest: dict[str, ObjectInfo] = {}
        for info in self._store.list(PREFIX):  # the first key of each folder is its newest record
            newest.setdefault(info.key.removeprefix(PREFIX).partition("/")[0], info)
        models = list(newest)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="conditions") as pool:
            heads = list(pool.map(lambda model: self._head(model, newest[model]), models))
        with self._guard:
            self._known.update(zip(models, heads, strict=True))
        return {model: head.body for model, head in zip(models, heads, strict=True) if head is not None}

    def put(self, model: str, part: str, value: Mapping[str, Any], *, actor: str, reason: str) -> bool:
        """Commit one part of a model's record; the other parts stay.

        Returns:
            Whether the part was committed. If another process wrote since this process last read, that process is the
                new leader and its record wins; the record is read, so the next call is based on it.

        Raises:
            StoreError: The store failed.
        """
        with self._guard:
            try:
                revision = self._commit(model, part, value, actor=actor, reason=reason)
            except CommitConflictError:
                self._known[model] = self._head(model)
                return False
            self._known[model] = revision
            if revision.number > _KEPT:
                self._chain(model).prune(_KEPT)
            return True

    def remove(self, model: str) -> None:
        """Delete the conditions of a model whose deployment was removed.

        Raises:
            StoreError: The store failed.
        """
        with self._guard:
            self._clear(model)

    def _commit(self, model: str, part: str, value: Mapping[str, Any], *, actor: str, reason: str) -> Revision:
        chain, known = self._chain(model), self._known.get(model)
        try:
            known = known or chain.head()
            body = {**(known.body if known else {}), part: dict(value)}
            return chain.append(body, after=known, actor=actor, reason=reason)
        except DamagedRevisionError as error:
            # The record only preserves history and is not a source of truth: start over instead of never recording
            # again.
            logger.warning("the condition history of %s is damaged and is started again: %s", model, error)
            self._clear(model)
            body = {**(known.body if known else {}), part: dict(value)}
            return chain.append(body, after=None, actor=actor, reason=reason)

    def _clear(self, model: str) -> None:
        self._known.pop(model, None)
        for info in list(self._store.list(f"{PREFIX}{model}/")):
            self._store.delete(info.key)

    def _head(self, model: str, newest: ObjectInfo | None = None) -> Revision | None:
        try:
            chain = self._chain(model)
            return chain.head() if newest is None else chain.refresh_from(None, newest)
        except DamagedRevisionError as error:
            logger.warning("failed to read the condition history of %s: %s", model, error)
            return None

    def _chain(self, model: str) -> Chain:
        return Chain(self._store, f"{PREFIX}{model}/", pruned=True)
