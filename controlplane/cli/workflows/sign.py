"""Signing of a version, and verification with the user's own keys."""

import base64
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from controlplane.cli.output import Output
from controlplane.cli.progress import Bar
from controlplane.cli.references import version_path
from controlplane.cli.workflows.upload import fingerprint
from controlplane.client.http import Client
from controlplane.client.models import VersionDetail
from controlplane.domain.names import Reference
from controlplane.domain.trust import difference
from controlplane.errors import InvalidInputError, UnverifiedVersionError

PASSWORD_VARIABLE = "TRITONCTL_SIGN_KEY_PASSWORD"


def check_key(private_key: Path) -> None:
    """Check that a key can sign before anything is sent.

    Raises:
        InvalidInputError: It cannot sign.
    """
    from controlplane.signing.bundle import sign

    sign("check:1", (), private_key, _password())


def local_digests(source: Path, out: Output, *, version_folder: int | None = None) -> list[str]:
    """Hash the published files again, so that the local content is signed, whatever the server reports."""
    with Bar(out) as bar:
        return [file.entry.sha256 for file in fingerprint(source, bar, version_folder=version_folder)]


def sign_version(
    client: Client, detail: VersionDetail, private_key: Path, *, local: Collection[str] | None = None
) -> dict[str, Any]:
    """Sign a version and send the signature.

    Args:
        client: The control plane.
        detail: The version, as the control plane reports it.
        private_key: The key.
        local: The digests of the files that were published from here, which the version must have.

    Raises:
        UnverifiedVersionError: The version has other files than were published.
    """
    from controlplane.signing.bundle import sign

    reference = Reference(detail.model, version=detail.entry.number)
    reported = sorted(file.sha256 for file in detail.manifest.files)
    if local is not None and reported != sorted(local):
        raise UnverifiedVersionError(f"{reference} was not signed: its files differ from the local files")
    bundle = sign(str(reference), detail.manifest.files, private_key, _password())
    answer: dict[str, Any] = client.post(f"{version_path(reference)}/signatures", {"bundle": json.loads(bundle)})
    return {"reference": str(reference), "key": answer["key"], "sha256": answer["sha256"], "good": answer["good"]}


def verify_version(client: Client, detail: VersionDetail, public_keys: Sequence[Path]) -> dict[str, Any]:
    """Verify that a version is as a trusted key signed it: by these keys or, without any, by the control plane's.

    Raises:
        UnverifiedVersionError: It is not, or a server's model repository has other files.
    """
    from controlplane.signing.bundle import load_public_key, verify

    reference = Reference(detail.model, version=detail.entry.number)
    found = client.get(f"{version_path(reference)}/signatures")
    keys = [load_public_key(path) for path in public_keys]
    reasons = []
    for item in found["items"]:
        message = item["message"]
        if keys:
            try:
                statement = verify(base64.b64decode(item["bundle"]), keys)
                message = difference(str(reference), detail.manifest, statement)
            except (UnverifiedVersionError, InvalidInputError) as error:
                message = error.message
        if not message:
            _require_staged(str(reference), found.get("staged", ()))
            return {"reference": str(reference), "verified": True, "key": item["key"], "by": "given" if keys else "api"}
        reasons.append(message)
    raise UnverifiedVersionError(f"{reference} is not verified: {'; '.join(dict.fromkeys(reasons)) or 'not signed'}")


def _require_staged(reference: str, copies: Sequence[Mapping[str, Any]]) -> None:
    """Raise if a server's model repository has other files than were signed."""
    if wrong := [copy for copy in copies if not copy["intact"]]:
        where = "; ".join(f"on {copy['server']}: {copy['message']}" for copy in wrong)
        raise UnverifiedVersionError(
            f"{reference} is signed, but its files in Triton's model repository differ from the signed files: "
            f"{where}. They are replaced before the next load; find out which program wrote to the repository"
        )


def _password() -> str | None:
    return os.environ.get(PASSWORD_VARIABLE) or None
