"""A revision of a chain: a committed state and its format in the store."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from controlplane.errors import DamagedRevisionError


@dataclass(frozen=True, slots=True)
class Revision:
    """One committed state.

    Attributes:
        number: 1 for the first revision.
        commit_id: A unique id, by which a writer recognizes its own commit.
        parent_commit_id: The commit id of the previous revision; None for the first.
        at: When it was committed (UTC, the writer's clock).
        actor: The author of the commit.
        reason: What changed, and why if the actor gave a reason.
        body: The whole state, as JSON.
        epoch: The number of times that an operator decided which state is valid after revisions were lost. A reader
            does not look for revisions that it knew from an earlier epoch.
        stamp: Identity of the stored object that was read; empty if it was not listed yet. Not stored.
    """

    number: int
    commit_id: str
    parent_commit_id: str | None
    at: datetime
    actor: str
    reason: str
    body: Mapping[str, Any]
    epoch: int = 0
    stamp: str = field(default="", compare=False, repr=False)

    def to_json(self) -> bytes:
        """Return the object's content, indented for human readers of the bucket."""
        return json.dumps(self.document(), indent=2, allow_nan=False).encode()

    def document(self) -> dict[str, Any]:
        """Return the object's content as a JSON object, with a digest of the rest."""
        document = {
            "number": self.number,
            "commit_id": self.commit_id,
            "parent_commit_id": self.parent_commit_id,
            "at": self.at.isoformat(),
            "actor": self.actor,
            "reason": self.reason,
            "body": dict(self.body),
        }
        if self.epoch:
            document["epoch"] = self.epoch
        read_back = json.loads(json.dumps(document, allow_nan=False))
        return {**document, "sha256": _digest(read_back)}

    @classmethod
    def from_json(cls, data: bytes | str, key: str) -> "Revision":
        """Parse a revision. A revision written by hand may lack the digest.

        Raises:
            DamagedRevisionError: The object is damaged, or is not a revision because another program wrote it.
        """
        try:
            document = json.loads(data)
            digest = document.pop("sha256", None)
            if digest is not None and digest != _digest(document):
                raise ValueError("its content does not match its sha256")  # noqa: TRY301
            return cls(
                number=int(document["number"]),
                commit_id=str(document["commit_id"]),
                parent_commit_id=document["parent_commit_id"],
                at=datetime.fromisoformat(document["at"]),
                actor=sys.intern(str(document["actor"])),
                reason=str(document["reason"]),
                body=dict(document["body"]),
                epoch=int(document.get("epoch", 0)),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedRevisionError(
                f"{key} is damaged: it is not a revision of a chain ({error!r})", key=key
            ) from error


def _digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a revision's canonical JSON: sorted keys, no spaces."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
