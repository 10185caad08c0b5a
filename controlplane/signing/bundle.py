"""Signs and verifies with Sigstore's `model-signing` (the OpenSSF Model Signing format), with keys and offline.

A signature is a Sigstore bundle: a DSSE envelope with an in-toto statement that names the version and the SHA-256 of
each of its files. `model_signing verify key` accepts these bundles. The library's public interface reads all files
again to hash them; a version's digests are already known and checked on every read, so they are passed to the layer
below. This is why the extra pins the minor release of the library.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from controlplane.domain.manifest import FileEntry
from controlplane.domain.trust import Statement
from controlplane.errors import InvalidInputError, UnverifiedVersionError

BUNDLE_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies signatures.

    Attributes:
        id: SHA-256 of the key in PEM, the hint in a bundle.
        path: The key file.
    """

    id: str
    path: Path


def require_library() -> None:
    """Raise InvalidInputError unless the library is installed."""
    try:
        import model_signing  # noqa: F401
    except ImportError as error:
        raise InvalidInputError(
            "signatures need the extra `signing`: pip install 'triton-control-plane[signing]'"
        ) from error


def load_public_key(path: Path) -> PublicKey:
    """Read a public key (PEM, NIST P-256, P-384 or P-521).

    Raises:
        InvalidInputError: The file has no such key, or the library is not installed.
    """
    require_library()
    from cryptography.hazmat.primitives import serialization
    from model_signing._signing.sign_ec_key import Verifier

    try:
        Verifier(path)  # raises an error for kinds of keys that it cannot use
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InvalidInputError(
            f"{path} is not a valid public key for signatures ({_reason(error)}): {_HOW}"
        ) from error
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(sha256(pem).hexdigest(), path)


def sign(subject: str, files: Sequence[FileEntry], private_key: Path, password: str | None = None) -> bytes:
    """Return the signature of a version.

    Args:
        subject: The version, as ``name:7``.
        files: Its files.
        private_key: The key (PEM, NIST P-256, P-384 or P-521).
        password: The key's password.

    Raises:
        InvalidInputError: The key cannot be used, or the library is not installed.
    """
    require_library()
    from model_signing import manifest
    from model_signing._hashing.hashing import Digest
    from model_signing._signing.sign_ec_key import Signer
    from model_signing._signing.signing import Payload

    try:
        signer = Signer(private_key, password.encode() if password else None)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"{private_key} is not a valid private key for signing ({_reason(error)}): {_HOW}"
        ) from error
    items = [
        manifest.FileManifestItem(path=PurePosixPath(file.path), digest=Digest("sha256", bytes.fromhex(file.sha256)))
        for file in files
    ]
    kind = manifest.SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False})
    signature: Any = signer.sign(Payload(manifest.Manifest(subject, items, kind)))
    bundle: str = signature.bundle.to_json()
    return bundle.encode()


def key_hint(bundle: bytes) -> str:
    """Return the id of the key that made a signature, as the bundle claims.

    Raises:
        InvalidInputError: It is not a Sigstore bundle with the hint of a key.
    """
    try:
        hint = json.loads(bundle)["verificationMaterial"]["publicKey"]["hint"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInputError("the file is not a Sigstore bundle that was signed with a key") from error
    if not isinstance(hint, str) or not hint:
        raise InvalidInputError("the bundle does not say which key signed it; sign it again with model-signing 1.1")
    return hint


def verify(bundle: bytes, keys: Sequence[PublicKey]) -> Statement:
    """Return the signed statement, if one of these keys signed it.

    Raises:
        UnverifiedVersionError: None of them signed it, or the signature is not valid.
        InvalidInputError: It is not a signature, or the library is not installed.
    """
    require_library()
    from cryptography.exceptions import InvalidSignature
    from model_signing._signing.sign_ec_key import Verifier
    from model_signing._signing.sign_sigstore_pb import Signature
    from sigstore_models.bundle.v1 import Bundle

    hint = key_hint(bundle)
    key = next((key for key in keys if key.id == hint), None)
    if key is None:
        raise UnverifiedVersionError(
            f"the signature is by key {hint[:16]}…, which is not trusted by this control plane", key=hint
        )
    try:
        document = json.loads(bundle)
        document["verificationMaterial"].setdefault("tlogEntries", [])
        signed = Verifier(key.path).verify(Signature(Bundle.from_dict(document)))
        files = {item.identifier: item.digest for item in signed.resource_descriptors()}
        if any(digest.algorithm != "sha256" for digest in files.values()):
            raise UnverifiedVersionError("the digests in the signature are not SHA-256")
        return Statement(signed.model_name, {path: digest.digest_hex for path, digest in files.items()}, hint)
    except InvalidSignature as error:
        raise UnverifiedVersionError(f"the signature by key {hint[:16]}… is not valid") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, RecursionError) as error:
        # The author of a bundle controls its content: any of these errors means that the bundle cannot be used.
        raise UnverifiedVersionError(f"the signature is not readable ({type(error).__name__})") from error


_HOW = "create one with `openssl ecparam -name prime256v1 -genkey -noout -out key.pem` (and `openssl ec -pubout`)"


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]
