"""Checks every chain, blob and reference of a store, and makes the repairs that lose no data.

One LIST of the whole store finds all objects. An object that changes in the meantime is read again before a finding is
reported, so a check may run concurrently with commits, publishes and garbage collection.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from controlplane.domain.access import Keyring
from controlplane.domain.cordons import Cordons
from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.model import ModelHead
from controlplane.domain.units import count_text
from controlplane.domain.validation import invalid_field
from controlplane.errors import DamagedRevisionError, InvalidInputError, StoreWentBackwardsError
from controlplane.registry import cordons, keys, lost
from controlplane.registry.chain import Chain
from controlplane.registry.chain_check import check_chain
from controlplane.registry.changes import ChangeLog
from controlplane.registry.findings import Finding, FsckReport, Severity
from controlplane.registry.fsck_contents import Contents
from controlplane.registry.fsck_repair import Repairs
from controlplane.registry.head_memory import HeadMemory
from controlplane.registry.revision import Revision
from controlplane.storage.base import ObjectInfo, ObjectStore

_REVISION = re.compile(r"(.+/)(?:\d{12}|!lost-\d{12}-[0-9a-f]{12})\.json")
_GUARDED = re.compile(r"(models|deployments)/[^/]+/revisions/|(keys|cordons)/revisions/")
_PRUNED = ("holds/", "leases/", "scrub/", "conditions/", "rollouts/")
_NOT_CHAINS = (
    "blobs/",
    "agents/",
    "changes/",
    "gateways/",
    "operations/",
    "idempotency/",
    "publishing/",
    "gc/",
    "probe/",
    "signatures/",
    "incoming/",
)
_PARALLEL = 8
T = TypeVar("T", bound=BaseModel)
_Stage = Callable[[str], None]


def chain_named(store: ObjectStore, name: str, changes: ChangeLog | None = None) -> Chain:
    """Return a guarded chain by its name in messages: models/NAME, deployments/NAME, keys or cordons.

    Raises:
        InvalidInputError: The name is not the name of such a chain.
    """
    prefix = f"{name.strip('/')}/revisions/"
    if not _GUARDED.fullmatch(prefix):
        raise InvalidInputError(
            f"{name[:200]!r} is not the name of a chain; give models/NAME, deployments/NAME, keys or cordons",
            chain=name[:200],
        )
    return Chain(store, prefix, guarded=True, changes=changes)


class Fsck:
    """One check of a store.

    Args:
        store: The store.
        memory: The heads that this instance remembers; used to find lost revisions.
        repairs: Performs possible repairs; None only reports.
        deep: Whether to read every blob.
        stage: Called with the part of the store that is being checked.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        memory: HeadMemory | None = None,
        repairs: Repairs | None = None,
        deep: bool = False,
        stage: _Stage = lambda _: None,
    ) -> None:
        self._store = store
        self._memory = memory
        self._repairs = repairs
        self._deep = deep
        self._stage = stage
        self._findings: list[Finding] = []
        self._objects: dict[str, ObjectInfo] = {}
        self._revisions = 0

    def run(self, *, decided: Sequence[str] = ()) -> FsckReport:
        """Check the store.

        Args:
            decided: Decisions that were committed before the check, for the report.

        Raises:
            StoreError: The store failed.
        """
        self._stage("listing all objects")
        self._objects = {info.key: info for info in self._store.list("")}
        chains = self._chains()
        self._stage(f"checking {count_text(len(chains), 'chain')}")
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fsck") as pool:
            found = list(pool.map(self._check_chain, chains))
        heads = {chain.name: head for chain, head in zip(chains, found, strict=True) if head is not None}
        models = self._parsed(heads, "models/", ModelHead)
        deployments = self._parsed(heads, "deployments/", DeploymentSpec)
        self._parsed(heads, keys.NAME, Keyring)
        self._parsed(heads, cordons.NAME, Cordons)
        contents = Contents(self._store, self._objects, self._repairs, self._found)
        self._stage(f"checking the versions of {count_text(len(models), 'model')}")
        contents.check_versions(models.values())
        contents.check_references(models, deployments)
        contents.check_notes()
        if self._deep:
            self._stage(f"reading {count_text(len(contents.blobs), 'blob')}")
            contents.check_all_bytes()
        order = {Severity.ERROR: 0, Severity.WARNING: 1}
        return FsckReport(
            store=self._store.url,
            deep=self._deep,
            chains=len(chains),
            revisions=self._revisions,
            blobs=len(contents.blobs),
            blobs_unreferenced=len(contents.blobs - contents.referenced),
            bytes_read=contents.bytes_read,
            decided=tuple(decided),
            findings=tuple(sorted(self._findings, key=lambda one: (order[one.severity], one.subject, one.reason))),
        )

    # Chains

    def _chains(self) -> list[Chain]:
        prefixes = {
            match[1]
            for key in self._objects
            if not key.startswith(_NOT_CHAINS) and (match := _REVISION.fullmatch(key)) is not None
        }
        if self._memory is not None:
            prefixes |= {f"{name}/revisions/" for name in self._memory.names()}
        return [
            Chain(
                self._store,
                prefix,
                pruned=prefix.startswith(_PRUNED),
                guarded=_GUARDED.fullmatch(prefix) is not None,
            )
            for prefix in sorted(prefixes)
        ]

    def _check_chain(self, chain: Chain) -> Revision | None:
        guarded = _GUARDED.fullmatch(chain.prefix) is not None
        if guarded:
            self._check_lost(chain)
        numbers = chain.numbers()
        revisions, flaws = check_chain(chain, numbers)
        self._revisions += len(revisions)
        for flaw in flaws:
            # Damage is harmless in records that their writers repeat, and in revisions before an operator's decision.
            bad = guarded and not flaw.decided
            newest = flaw.reason == "RevisionDamaged" and flaw.number == numbers[0]
            repaired = bad and newest and self._repairs is not None and self._repairs.head(chain, self._memory)
            self._found(
                Severity.ERROR if bad else Severity.WARNING,
                flaw.reason,
                chain.name,
                flaw.message,
                advice=f"restore the object from a backup, or run `tritonctl fsck --accept {chain.name}`"
                if bad
                else "",
                repaired=repaired,
            )
        return revisions[0] if revisions else None

    def _check_lost(self, chain: Chain) -> None:
        try:
            chain.refresh(self._memory.get(chain.name) if self._memory is not None else None)
        except StoreWentBackwardsError as error:
            missing = lost.lost_revisions(chain)
            back = bool(missing) and lost.are_back(chain, missing)
            if back and self._repairs is not None:
                lost.forget_notes(chain)
            self._found(
                Severity.ERROR,
                "ChainWentBackwards",
                chain.name,
                f"revision {error.details['lost_revision']} is in the store again"
                if back
                else _lost_sentence(chain, missing) or error.message,
                advice="run `tritonctl fsck --repair` to allow commits again"
                if back
                else f"`tritonctl fsck --restore {chain.name}` commits the lost state, `tritonctl fsck --accept "
                f"{chain.name}` the present one",
                repaired=back and self._repairs is not None,
            )
        except DamagedRevisionError:
            pass  # reported with the revisions

    def _parsed(self, heads: dict[str, Revision], prefix: str, kind: type[T]) -> dict[str, T]:
        found: dict[str, T] = {}
        for name, head in heads.items():
            if not (name == prefix or (prefix.endswith("/") and name.startswith(prefix))):
                continue
            try:
                found[name.removeprefix(prefix)] = kind.model_validate(head.body)
            except ValidationError as error:
                self._found(
                    Severity.ERROR,
                    "StateUnreadable",
                    name,
                    f"revision {head.number} is not valid: {invalid_field(error)}",
                    advice="if a newer release wrote it, use that release; otherwise restore the object from a backup",
                )
        return found

    def _found(
        self,
        severity: Severity,
        reason: str,
        subject: str,
        message: str,
        *,
        advice: str = "",
        repaired: bool = False,
    ) -> None:
        self._findings.append(
            Finding(
                severity=severity,
                reason=reason,
                subject=subject,
                message=message,
                advice="" if repaired else advice,
                repaired=repaired,
            )
        )


def _lost_sentence(chain: Chain, missing: Sequence[Revision]) -> str:
    if not missing:
        return ""
    newest, present = missing[0], chain.newest_regardless()
    now = (
        f"the newest revision is {present.number} by {present.actor} ({present.reason})"
        if present
        else "no revision is left"
    )
    return (
        f"revision {newest.number} by {newest.actor} ({newest.reason}, {newest.at:%Y-%m-%d %H:%M} UTC) is lost; {now}"
    )
