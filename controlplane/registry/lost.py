"""An operator's decision about a chain that went backwards.

A process that knew a lost revision wrote it as a note into the chain's folder (`controlplane.registry.chain`). Nothing
is committed until the notes are removed. There are two decisions:

* *accept*: the content of the store is valid. Revoked keys stay revoked, deleted versions stay deleted, and the numbers
  of lost versions are not reused, because Triton servers may still have files under them.
* *restore*: the newest lost revision is valid. It is written under its original key if the key is free and its parent
  exists. Otherwise its state is committed as a new revision, together with the versions and keys that were added since.

In both cases the notes are removed last, so an interrupted decision can be repeated.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from controlplane.domain.access import ApiKey, Keyring
from controlplane.domain.cordons import Cordons
from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.model import ModelHead, VersionEntry
from controlplane.errors import ConflictError, NotFoundError, ObjectNotFoundError
from controlplane.registry.chain import Chain
from controlplane.registry.chain_check import check_chain
from controlplane.registry.revision import Revision
from controlplane.storage.base import ObjectStore

Body = dict[str, Any]


def lost_revisions(chain: Chain) -> list[Revision]:
    """Return the lost revisions that were noted, highest number first.

    Raises:
        DamagedRevisionError: A note is damaged.
    """
    found = []
    for key in chain.notes():
        with suppress(ObjectNotFoundError):  # decided in the meantime
            found.append(Revision.from_json(chain.store.get(key), key))
    return found


def are_back(chain: Chain, lost: Sequence[Revision]) -> bool:
    """Return whether all lost revisions are in the chain again, for example because an instance caught up."""
    for revision in lost:
        try:
            if chain.get(revision.number).commit_id != revision.commit_id:
                return False
        except NotFoundError:
            return False
    return True


def forget_notes(chain: Chain) -> None:
    """Remove the notes, so that commits are possible again."""
    for key in chain.notes():
        chain.store.delete(key)


def accept(chain: Chain, *, actor: str, reason: str = "") -> Revision:
    """Decide that the content of the store is valid, also if no lost revision is known but the chain is damaged.

    Raises:
        NotFoundError: The chain does not exist.
        ConflictError: The chain is intact and no lost revision was noted, or none of its revisions can be read.
        CommitConflictError: Another decision was committed at the same time.
    """
    lost, present = lost_revisions(chain), chain.newest_regardless()
    _require_chain(chain, lost)
    if lost:
        body = _merge(chain)(dict(lost[0].body), dict(present.body) if present else None, False)
        what = f"accept the loss of revision {lost[0].number}"
    else:
        _, flaws = check_chain(chain, chain.numbers())
        open_flaws = [flaw for flaw in flaws if not flaw.decided]
        if not open_flaws or present is None:
            state = "is intact" if not open_flaws else "has no readable revision"
            raise ConflictError(f"nothing to accept: {chain.name} {state}, and no lost revision of it is known")
        body, what = dict(present.body), f"accept a damaged chain ({open_flaws[0].message})"
    return _decide(chain, lost, present, body, actor, what, reason)


def restore(chain: Chain, *, actor: str, reason: str = "") -> Revision:
    """Decide that the newest lost revision is valid.

    Raises:
        NotFoundError: The chain does not exist.
        ConflictError: No lost revision was noted.
        CommitConflictError: Another decision was committed at the same time.
    """
    lost, present = lost_revisions(chain), chain.newest_regardless()
    _require_chain(chain, lost)
    if not lost:
        raise ConflictError(f"nothing to restore: no lost revision of {chain.name} is known")
    for revision in reversed(lost):  # as long as they continue the existing chain
        number, parent = (present.number, present.commit_id) if present else (0, None)
        if (revision.number, revision.parent_commit_id) == (number + 1, parent):
            chain.put_back(revision)
            present = revision
    target = lost[0]
    if present is not None and present.commit_id == target.commit_id:
        forget_notes(chain)
        return present
    body = _merge(chain)(dict(target.body), dict(present.body) if present else None, True)
    return _decide(chain, lost, present, body, actor, f"restore lost revision {target.number}", reason)


def _require_chain(chain: Chain, lost: Sequence[Revision]) -> None:
    """Raise `NotFoundError` for a chain without any revision, present or lost."""
    if not lost and not chain.numbers():
        raise NotFoundError(
            f"the store has no chain {chain.name}; check the name (models/NAME, deployments/NAME, keys or cordons)",
            chain=chain.name,
        )


def _decide(
    chain: Chain, lost: Sequence[Revision], present: Revision | None, body: Body, actor: str, what: str, why: str
) -> Revision:
    known = [*lost, *([present] if present else [])]
    revision = chain.supersede(
        body,
        present=present,
        number=max([one.number for one in known] + chain.numbers()[:1]) + 1,
        epoch=max(one.epoch for one in known) + 1,
        actor=actor,
        reason=f"{what}: {why}" if why else what,
    )
    forget_notes(chain)
    return revision


def _merge(chain: Chain) -> Callable[[Body, Body | None, bool], Body]:
    kind = chain.name.split("/", 1)[0]
    merges = {
        "models": _merge_models,
        "deployments": _merge_deployments,
        "keys": _merge_keys,
        "cordons": _merge_cordons,
    }
    return merges[kind]


def _merge_models(lost_body: Body, present_body: Body | None, restore: bool) -> Body:
    lost = ModelHead.model_validate(lost_body)
    empty = ModelHead(name=lost.name, deleted=True)
    present = ModelHead.model_validate(present_body) if present_body else empty
    there = {entry.number: entry for entry in present.versions}
    versions: dict[int, VersionEntry] = dict(there)
    for entry in lost.versions:
        if restore or entry.deleted:
            versions[entry.number] = entry
        elif entry.number not in there:
            versions[entry.number] = entry.model_copy(update={"deleted": True, "deleted_at": datetime.now(UTC)})
    kept = lost if restore else present
    live = {number for number, entry in versions.items() if not entry.deleted}
    update = {
        "versions": tuple(versions[number] for number in sorted(versions)),
        "aliases": {alias: number for alias, number in kept.aliases.items() if number in live},
    }
    return kept.model_copy(update=update).model_dump(mode="json")


def _merge_deployments(lost_body: Body, present_body: Body | None, restore: bool) -> Body:
    lost = DeploymentSpec.model_validate(lost_body)
    if restore:
        return lost.model_dump(mode="json")
    present = DeploymentSpec.model_validate(present_body) if present_body else lost.with_changes(deleted=True)
    return present.model_dump(mode="json")


def _merge_keys(lost_body: Body, present_body: Body | None, restore: bool) -> Body:
    lost = Keyring.model_validate(lost_body)
    present = Keyring.model_validate(present_body or {})
    keys: dict[str, ApiKey] = {}
    for key in (*present.keys, *(lost.keys if restore else ())):
        keys[key.id] = key
    for key in (*present.keys, *lost.keys):
        if key.revoked_at is not None and key.id in keys:
            keys[key.id] = key
    ordered = sorted(keys.values(), key=lambda key: key.created_at)
    return Keyring(keys=tuple(ordered)).model_dump(mode="json")


def _merge_cordons(lost_body: Body, present_body: Body | None, restore: bool) -> Body:
    made = Cordons.model_validate(present_body or {})
    for cordon in Cordons.model_validate(lost_body).servers if restore else ():
        made = made if made.of(cordon.server) else made.with_(cordon)
    return made.model_dump(mode="json")


def noted_chains(store: ObjectStore) -> list[str]:
    """Return the names of the chains that went backwards and await a decision. One LIST for 1,000 revisions."""
    names = set()
    for prefix in ("cordons/", "deployments/", "keys/", "models/"):
        for info in store.list(prefix):
            folder, note, _ = info.key.partition("/revisions/!lost-")
            if note:
                names.add(folder)
    return sorted(names)
