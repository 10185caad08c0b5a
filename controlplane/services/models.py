"""Models and aliases."""

import asyncio
from collections import OrderedDict

from controlplane.domain.model import ModelHead
from controlplane.domain.names import LATEST, validate_alias, validate_model_name
from controlplane.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.chain import Revision
from controlplane.registry.registry import Registry

_JSON_KEPT = 1024


class Models:
    """Use cases for a model's head.

    The most frequent read, a head, needs neither a thread nor another serialisation while it is in memory and recent
    enough (`peek`, `peek_json`).
    """

    def __init__(self, registry: Registry, reconciler: Reconciler) -> None:
        self._registry = registry
        self._reconciler = reconciler
        self._json: OrderedDict[str, tuple[ModelHead, bytes]] = OrderedDict()

    def peek(self, model: str) -> ModelHead | None:
        """Return the head in memory if it is recent enough. No I/O."""
        return self._registry.peek_model(model)

    def peek_json(self, model: str) -> bytes | None:
        """Return the head in memory as JSON, serialised once for each revision."""
        head = self._registry.peek_model(model)
        return None if head is None else self._serialise(head)

    async def get(self, model: str) -> ModelHead:
        """Return a model's head.

        Raises:
            NotFoundError: The model does not exist.
        """
        return await asyncio.to_thread(self._registry.get_model, validate_model_name(model))

    async def get_json(self, model: str) -> bytes:
        """Return a model's head as JSON (see `get`)."""
        return self._serialise(await self.get(model))

    async def page(self, *, after: str, limit: int) -> list[ModelHead]:
        """Return existing models by name."""
        return await asyncio.to_thread(self._registry.list_models, after=after, limit=limit)

    async def put(
        self, model: str, *, description: str | None, labels: dict[str, str] | None, actor: str, reason: str
    ) -> tuple[ModelHead, bool]:
        """Create a model or change the existing one, and return it and whether it was created."""
        validate_model_name(model)

        def create() -> ModelHead:
            return self._registry.create_model(
                model, description=description or "", labels=labels or {}, actor=actor, reason=reason
            )

        try:
            await asyncio.to_thread(self._registry.get_model, model)
        except NotFoundError:
            try:
                return await asyncio.to_thread(create), True
            except AlreadyExistsError:
                pass  # a concurrent request created it
        return await self.update(model, description=description, labels=labels, actor=actor, reason=reason), False

    async def update(
        self, model: str, *, description: str | None, labels: dict[str, str] | None, actor: str, reason: str
    ) -> ModelHead:
        """Change a model's description or labels."""
        validate_model_name(model)
        return await asyncio.to_thread(
            lambda: self._registry.update_model(
                model, description=description, labels=labels, actor=actor, reason=reason
            )
        )

    async def delete(self, model: str, *, actor: str, reason: str) -> None:
        """Delete a model and its versions.

        Raises:
            InUseError: The model is deployed.
        """
        validate_model_name(model)
        await asyncio.to_thread(lambda: self._registry.delete_model(model, actor=actor, reason=reason))

    async def history(self, model: str, *, before: int | None, limit: int) -> list[Revision]:
        """Return a model's revisions, newest first."""
        validate_model_name(model)
        return await asyncio.to_thread(lambda: list(self._registry.history(model, limit=limit, before=before)))

    async def set_alias(self, model: str, alias: str, version: int, *, actor: str, reason: str) -> None:
        """Point an alias to a version; deployments that follow the alias change to it."""
        validate_model_name(model)
        validate_alias(alias)
        await asyncio.to_thread(lambda: self._registry.set_alias(model, alias, version, actor=actor, reason=reason))
        self._reconciler.wake(model)

    async def remove_alias(self, model: str, alias: str, *, actor: str, reason: str) -> None:
        """Remove an alias."""
        validate_model_name(model)
        if alias == LATEST:
            raise InvalidInputError("'latest' always points to the newest version and cannot be removed")
        validate_alias(alias)
        await asyncio.to_thread(lambda: self._registry.remove_alias(model, alias, actor=actor, reason=reason))

    def _serialise(self, head: ModelHead) -> bytes:
        known = self._json.get(head.name)
        if known is not None and known[0] is head:
            return known[1]
        data = head.__pydantic_serializer__.to_json(head)
        self._json[head.name] = (head, data)
        if len(self._json) > _JSON_KEPT:
            self._json.popitem(last=False)
        return data
