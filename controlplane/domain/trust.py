"""Contents of a signature, and verification of a version against it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.domain.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Statement:
    """A signed statement.

    Attributes:
        subject: The version, as ``name:7``: so a signature is valid for one version only, and not for an older one's
            files that are published again under a new number.
        files: SHA-256 by path, of every file.
        key_id: SHA-256 of the public key that verifies it.
    """

    subject: str
    files: Mapping[str, str]
    key_id: str


def difference(reference: str, manifest: Manifest, statement: Statement) -> str:
    """Return how a version differs from what was signed; empty if it does not."""
    if statement.subject != reference:
        return f"the signature is for {statement.subject!r}"
    have = {file.path: file.sha256 for file in manifest.files}
    for path in sorted(have.keys() | statement.files.keys()):
        if path not in statement.files:
            return f"the file {path!r} is not signed"
        if path not in have:
            return f"the signed file {path!r} is missing"
        if have[path] != statement.files[path]:
            return f"the file {path!r} differs from the signed one"
    return ""
