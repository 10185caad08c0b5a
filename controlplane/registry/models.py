"""Models: the chains of their heads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from controlplane.domain.model import ModelHead
from controlplane.domain.names import close_names, validate_model_name
from controlplane.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from controlplane.registry.chain import Chain, Revision
from controlplane.registry.changes import ChangeFeed, ChangeLog
from controlplane.registry.head_memory import HeadMemory
from controlplane.registry.heads import Head, HeadCache
from controlplane.storage.base import ObjectStore

KIND = "models"
PREFIX = f"{KIND}/"
_PARALLEL_READS = 8
_SUGGESTIONS_FROM = 1000
"""Maximum number of names that are searched for a suggestion: one LIST."""
_NAMES_SHOWN = 10


def explain(what: str, reason: str) -> str:
    """Join a description of a commit with the reason given by its author."""
    return f"{what}: {reason}" if reason else what


Heads = list[ModelHead]  # inside the class, `list` is a method
Revisions = list[Revision]


class Models:
    """Reads and edits heads. The head of a deleted model stays, so its version numbers are never reused."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        head_max_age_seconds: float,
        changes: ChangeLog | None = None,
        feed: ChangeFeed | None = None,
        memory: HeadMemory | None = None,
    ) -> None:
        self._store = store
        self._changes = changes
        self.heads: HeadCache[ModelHead] = HeadCache(
            self._chain, ModelHead, kind=KIND, max_age_seconds=head_max_age_seconds, feed=feed, memory=memory
        )

    def get(self, name: str, *, fresh: bool = False) -> ModelHead:
        """Return a model's head. A miss is always verified in the store before it is reported.

        Raises:
            NotFoundError: The model does not exist or was deleted.
        """
        head = self.heads.read(name, fresh=fresh)
        if not fresh and (head is None or head.value.deleted):
            head = self.heads.read(name, fresh=True)
        if head is None or head.value.deleted:
            raise self.missing(name)
        return head.value

    def peek(self, name: str) -> ModelHead | None:
        """Return the head from memory if it is recent enough. No I/O."""
        head = self.heads.peek(name)
        return None if head is None or head.value.deleted else head.value

    def list(self, *, after: str = "", limit: int = 100) -> Heads:
        """Return at most ``limit`` live models after the name ``after``, in the order of their folders in the bucket.

        The sort key is ``name + "/"``: ``a-b`` and ``a.b`` come before ``a``.
        """
        found: list[ModelHead] = []
        while len(found) < limit:
            names = list(self._store.list_folders(PREFIX, start_after=after, limit=limit))
            found += [head.value for head in self._read_all(names) if not head.value.deleted]
            if len(names) < limit:
                break
            after = names[-1]
        return found[:limit]

    def names(self, *, after: str = "", limit: int = 100) -> Sequence[str]:
        """Return the names of models, including deleted ones, in the order of `list`. One request."""
        return tuple(self._store.list_folders(PREFIX, start_after=after, limit=limit))

    def all_fresh(self) -> Iterator[ModelHead]:
        """Yield the current head of every model, including deleted ones. For garbage collection."""
        for head in self._read_all(list(self._store.list_folders(PREFIX)), fresh=True):
            yield head.value

    def create(self, name: str, *, description: str, labels: dict[str, str], actor: str, reason: str = "") -> ModelHead:
        """Create a model without versions.

        Raises:
            AlreadyExistsError: A model with this name exists.
        """

        def change(head: ModelHead | None) -> tuple[ModelHead, str]:
            if head is not None and not head.deleted:
                raise AlreadyExistsError(f"model {name!r} already exists", model=name)
            update = {"description": description, "labels": labels, "deleted": False, "aliases": {}}
            return (head or ModelHead(name=name)).model_copy(update=update), explain("create model", reason)

        return self.edit_any(name, change, actor=actor)

    def update(
        self,
        name: str,
        *,
        description: str | None = None,
        labels: dict[str, str] | None = None,
        actor: str,
        reason: str = "",
    ) -> ModelHead:
        """Change the given values; labels are replaced as a whole. No revision is committed if nothing changes."""

        def change(head: ModelHead) -> tuple[ModelHead, str] | None:
            update: dict[str, object] = {}
            if description is not None and description != head.description:
                update["description"] = description
            if labels is not None and labels != head.labels:
                update["labels"] = labels
            if not update:
                return None
            return head.model_copy(update=update), explain("change " + " and ".join(sorted(update)), reason)

        return self.edit(name, change, actor=actor)

    def edit(
        self,
        name: str,
        change: Callable[[ModelHead], tuple[ModelHead, str] | None],
        *,
        actor: str,
        commit_id: str | None = None,
    ) -> ModelHead:
        """Edit the head of a live model.

        Raises:
            NotFoundError: The model does not exist or was deleted.
        """

        def change_live(head: ModelHead | None) -> tuple[ModelHead, str] | None:
            if head is None or head.deleted:
                raise self.missing(name)
            return change(head)

        return self.edit_any(name, change_live, actor=actor, commit_id=commit_id)

    def edit_any(
        self,
        name: str,
        change: Callable[[ModelHead | None], tuple[ModelHead, str] | None],
        *,
        actor: str,
        commit_id: str | None = None,
    ) -> ModelHead:
        """Edit a head that may be missing or deleted (see `HeadCache.edit`)."""
        head = self.heads.edit(name, change, actor=actor, commit_id=commit_id)
        if head is None:
            raise self.missing(name)
        return head.value

    def history(self, name: str, *, limit: int | None = None, before: int | None = None) -> Revisions:
        """Return the revisions, newest first, including those of a deleted model.

        Raises:
            NotFoundError: The model never existed.
        """
        revisions = list(self._chain(name).history(limit=limit, before=before))
        if not revisions and before is None and limit != 0:
            raise self.missing(name)
        return revisions

    def chains(self) -> Iterator[Chain]:
        """Yield the chain of every model, including deleted ones."""
        for name in self._store.list_folders(PREFIX):
            with suppress(InvalidInputError):  # a folder that a person created
                yield self._chain(name)

    def missing(self, name: str) -> NotFoundError:
        """Return the error for a missing model, with a suggestion of the closest existing name."""
        known = self.heads.names()
        if known is None:
            known = list(self._store.list_folders(PREFIX, limit=_SUGGESTIONS_FROM))
        names = [other for other in known if other != name]
        # Deleted models have folders too; only names that would be suggested are checked.
        close = self._live(close_names(name, names, limit=5))[:3]
        shown = [] if close else self._live(names[:_NAMES_SHOWN])
        if close:
            hint = f"; did you mean {' or '.join(map(repr, close))}?"
        elif shown:
            hint = f"; existing models: {', '.join(shown)}" + (", …" if len(names) > _NAMES_SHOWN else "")
        else:
            hint = "; the registry has no models yet"
        return NotFoundError(f"model {name!r} does not exist{hint}", model=name, suggestions=close)

    def _live(self, names: Sequence[str]) -> Sequence[str]:
        return [head.value.name for head in self._read_all(names) if not head.value.deleted]

    def _read_all(self, names: Sequence[str], *, fresh: bool = False) -> Sequence[Head[ModelHead]]:
        def read(name: str) -> Head[ModelHead] | None:
            try:
                return self.heads.read(name, fresh=fresh)
            except InvalidInputError:
                return None  # a folder that a person created

        if len(names) <= 1:
            heads = [read(name) for name in names]
        else:
            with ThreadPoolExecutor(min(_PARALLEL_READS, len(names)), thread_name_prefix="heads") as pool:
                heads = list(pool.map(read, names))
        return [head for head in heads if head is not None]

    def _chain(self, name: str) -> Chain:
        return Chain(
            self._store, f"{PREFIX}{validate_model_name(name)}/revisions/", guarded=True, changes=self._changes
        )
