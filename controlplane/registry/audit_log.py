"""The audit log: who changed what, when and why, read from the chains of models, deployments, API keys and cordons.

Nothing is written for it: a commit is its own record. A page costs a listing of the chains' keys and two reads for each
entry. The listing is not kept, so the memory that a page needs depends on its size alone.
"""

import heapq
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from controlplane.domain.names import validate_model_name
from controlplane.errors import DamagedRevisionError, ObjectNotFoundError
from controlplane.registry import cordons, deployments, keys, models
from controlplane.registry.chain import Chain, Revision
from controlplane.storage.base import ObjectInfo, ObjectStore

AuditKind = Literal["model", "alias", "deployment", "key", "server"]

_KEY = re.compile(
    r"(?P<prefix>(?:(?P<folder>models|deployments)/(?P<name>[^/]+)/|(?P<single>keys|cordons)/)revisions/)(?P<left>\d{12})\.json"
)
_KINDS: dict[str, AuditKind] = {"models": "model", "deployments": "deployment", "keys": "key", "cordons": "server"}
_TOP = 10**12
_THREADS = 8
_WRITER_SKEW = timedelta(minutes=10)
"""A revision that its writer dated earlier than this before the store's time was copied there, as by a restore."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One commit.

    Attributes:
        at: When it was committed (UTC, the writer's clock).
        stored_at: When the store received it (UTC, the store's clock). Entries are in this order.
        kind: What changed; an alias is part of its model's chain.
        name: The model; empty for API keys and servers.
        revision: The number of the revision in its chain.
        actor: Who changed it: the API key's name and the person, as far as the request named them.
        reason: What changed, and why if the request gave a reason.
        changed: The parts of the state that differ from the previous revision.
        commit_id: The commit's unique id.
        error: Why the revision cannot be read; empty if it can.
    """

    at: datetime
    stored_at: datetime
    kind: AuditKind
    name: str
    revision: int
    actor: str
    reason: str
    changed: tuple[str, ...]
    commit_id: str
    error: str = ""


Position = tuple[datetime, str]
"""The store's time and the key of an entry."""


class AuditLog:
    """Reads commits in the order of the store's time. Blocks; safe to use from several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def page(
        self, *, since: datetime, until: datetime | None, model: str | None, after: Position | None, limit: int
    ) -> tuple[list[AuditEntry], Position | None]:
        """Return at most ``limit`` commits, oldest first, and the position after which the next page begins.

        Args:
            since: Only commits at this time or later.
            until: Only commits before this time; None: no bound.
            model: Only commits to this model and its deployment.
            after: Only commits after this position.
            limit: Maximum number of commits, at least 1.

        Raises:
            InvalidNameError: The name of the model is invalid.
            StoreError: The store failed.
        """

        def wanted() -> Iterator[tuple[datetime, str, ObjectInfo]]:
            for info in self._listed(model):
                there = (info.modified_at, info.key)
                if there[0] < since or (until is not None and there[0] >= until) or (after and there <= after):
                    continue
                if _KEY.fullmatch(info.key):
                    yield (*there, info)

        found = heapq.nsmallest(limit + 1, wanted(), key=lambda one: one[:2])
        page, rest = found[:limit], found[limit:]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="audit") as pool:
            entries = [entry for entry in pool.map(self._entry, [info for _, _, info in page]) if entry is not None]
        shown = [entry for entry in entries if entry.error or entry.at >= since - _WRITER_SKEW]
        # The store's time may be in whole seconds; within one, the writers' times are more precise.
        shown.sort(key=lambda entry: (entry.stored_at, entry.at, entry.revision))
        return shown, page[-1][:2] if rest else None

    def _listed(self, model: str | None) -> Iterator[ObjectInfo]:
        if model is not None:
            validate_model_name(model)
            prefixes = [f"{kind}{model}/revisions/" for kind in (models.PREFIX, deployments.PREFIX)]
        else:
            prefixes = [models.PREFIX, deployments.PREFIX, keys.PREFIX, cordons.PREFIX]
        for prefix in prefixes:
            yield from self._store.list(prefix)

    def _entry(self, info: ObjectInfo) -> AuditEntry | None:
        match = _KEY.fullmatch(info.key)
        assert match is not None
        number, name = _TOP - int(match["left"]), match["name"] or ""
        kind = _KINDS[match["folder"] or match["single"]]
        chain = Chain(self._store, match["prefix"])
        try:
            revision = chain.read(number)
        except ObjectNotFoundError:
            return None  # removed in the meantime
        except DamagedRevisionError as error:
            at = info.modified_at
            return AuditEntry(at, at, kind, name, number, "", "", (), "", error.message)
        changed = _changed(_parent(chain, revision), revision)
        if kind == "model" and changed == ("aliases",):
            kind = "alias"
        return AuditEntry(
            revision.at, info.modified_at, kind, name, number, revision.actor, revision.reason, changed,
            revision.commit_id,
        )  # fmt: skip


def _parent(chain: Chain, revision: Revision) -> Revision | None:
    if revision.number == 1:
        return None
    try:
        return chain.read(revision.number - 1)
    except (ObjectNotFoundError, DamagedRevisionError):
        return None  # `tritonctl fsck` reports it


def _changed(before: Revision | None, after: Revision) -> tuple[str, ...]:
    old = {} if before is None else before.body
    return tuple(sorted(key for key in old.keys() | after.body.keys() if old.get(key) != after.body.get(key)))
