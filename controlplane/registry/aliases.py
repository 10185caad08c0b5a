"""Aliases: names for versions, stored in the model's head and moved atomically with it."""

import difflib

from controlplane.domain.model import ModelHead
from controlplane.domain.names import validate_alias
from controlplane.errors import NotFoundError
from controlplane.registry.models import Models, explain


def set_alias(models: Models, name: str, alias: str, number: int, *, actor: str, reason: str = "") -> ModelHead:
    """Point an alias at a version; commit no revision if it already points there.

    Raises:
        NotFoundError: The model or version does not exist.
    """
    validate_alias(alias)

    def change(head: ModelHead) -> tuple[ModelHead, str] | None:
        head.version(number)
        if head.aliases.get(alias) == number:
            return None
        aliases = {**head.aliases, alias: number}
        return head.model_copy(update={"aliases": aliases}), explain(describe_move(head, alias, number), reason)

    return models.edit(name, change, actor=actor)


def remove_alias(models: Models, name: str, alias: str, *, actor: str, reason: str = "") -> ModelHead:
    """Remove an alias.

    Raises:
        NotFoundError: The model or alias does not exist.
    """

    def change(head: ModelHead) -> tuple[ModelHead, str]:
        if alias not in head.aliases:
            raise missing_alias(head, alias)
        left = {key: value for key, value in head.aliases.items() if key != alias}
        return head.model_copy(update={"aliases": left}), explain(
            f"remove alias {alias} (was {head.aliases[alias]})", reason
        )

    return models.edit(name, change, actor=actor)


def describe_move(head: ModelHead, alias: str, number: int) -> str:
    """Describe the move of an alias for the history."""
    before = head.aliases.get(alias)
    return f"alias {alias} {before} -> {number}" if before else f"alias {alias} -> {number}"


def missing_alias(head: ModelHead, alias: str) -> NotFoundError:
    """Return the error for a missing alias, with a suggestion or the existing aliases."""
    close = difflib.get_close_matches(alias, head.aliases, n=1)
    have = ", ".join(sorted(head.aliases)) or "none"
    hint = f"did you mean {close[0]!r}?" if close else f"existing aliases: {have}"
    return NotFoundError(f"{head.name} has no alias {alias!r}; {hint}", model=head.name, alias=alias)
