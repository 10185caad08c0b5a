"""Signatures of versions, and the decision whether a version may be deployed.

A signature is a separate object, ``signatures/NAME/7/SHA256.json``, which is created once and never changed. So a
version can be signed after it was published (a converted version was never on a user's machine before), and by several
signers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.domain.manifest import Manifest
from controlplane.domain.names import validate_model_name
from controlplane.domain.trust import difference
from controlplane.errors import (
    ConflictError,
    InvalidInputError,
    ObjectExistsError,
    TooLargeError,
    UnverifiedVersionError,
)
from controlplane.settings import SigningSettings
from controlplane.signing.bundle import BUNDLE_MAX_BYTES, PublicKey, key_hint, load_public_key, verify
from controlplane.storage.base import ObjectStore

PREFIX = "signatures/"
SIGNATURES_MAX = 32


@dataclass(frozen=True, slots=True)
class StoredSignature:
    """A stored signature with the result of its verification.

    Attributes:
        sha256: Digest of the bundle.
        bundle: The Sigstore bundle.
        key_id: The signing key, as the bundle claims.
        good: Whether a trusted key signed this version in its current state.
        message: Why the signature is not good.
    """

    sha256: str
    bundle: bytes
    key_id: str
    good: bool
    message: str


class Signatures:
    """Stores signatures and verifies versions with them. Blocks; safe to use from several threads.

    Raises:
        InvalidInputError: Signatures are required and no public key is given, or a public key cannot be read.
    """

    def __init__(self, store: ObjectStore, settings: SigningSettings) -> None:
        self._store = store
        self.required = settings.required
        self._keys: Sequence[PublicKey] = tuple(load_public_key(path) for path in settings.public_keys)
        if settings.required and not self._keys:
            raise InvalidInputError(
                "signatures are required (CONTROLPLANE_SIGNING__REQUIRED), but no key is trusted: set "
                "CONTROLPLANE_SIGNING__PUBLIC_KEYS to a JSON list of files"
            )

    def add(self, model: str, number: int, manifest: Manifest, bundle: bytes) -> StoredSignature:
        """Store a signature. Storing the same signature again is not an error.

        Raises:
            InvalidInputError: The bundle is not a signature.
            TooLargeError: The bundle exceeds the size limit of a signature.
            UnverifiedVersionError: Trusted keys are configured, and none of them verifies the signature.
            ConflictError: The version has too many signatures.
        """
        if len(bundle) > BUNDLE_MAX_BYTES:
            raise TooLargeError(f"a signature must have at most {BUNDLE_MAX_BYTES} bytes; this one has {len(bundle)}")
        key_hint(bundle)
        signature = self._judge(f"{model}:{number}", manifest, bundle)
        if self._keys and not signature.good:
            raise UnverifiedVersionError(f"the signature of {model}:{number} is rejected: {signature.message}")
        if len(list(self._store.list(self._folder(model, number), limit=SIGNATURES_MAX))) >= SIGNATURES_MAX:
            raise ConflictError(f"the limit of {SIGNATURES_MAX} signatures of {model}:{number} is reached")
        try:
            self._store.create(f"{self._folder(model, number)}{signature.sha256}.json", bundle)
        except ObjectExistsError:
            return signature
        return signature

    def list(self, model: str, number: int, manifest: Manifest) -> list[StoredSignature]:
        """Return a version's signatures, each with the result of its verification."""
        found = list(self._store.list(self._folder(model, number), limit=SIGNATURES_MAX))
        return [self._judge(f"{model}:{number}", manifest, self._store.get(info.key)) for info in found]

    def demand(self, model: str, number: int, manifest: Manifest) -> None:
        """Raise UnverifiedVersionError unless the version may be deployed.

        It may be deployed if signatures are not required, or if a trusted key signed its current state. Staging reads
        the files by the manifest's digests and verifies them, so Triton gets exactly the verified files.
        """
        if not self.required:
            return
        found = self.list(model, number, manifest)
        if any(one.good for one in found):
            return
        reasons = "; ".join(dict.fromkeys(one.message for one in found))
        raise UnverifiedVersionError(
            f"{model}:{number} is not deployed: "
            + (
                reasons
                or f"it is not signed, and signatures are required; sign it with `tritonctl sign {model}:{number}`"
            ),
            model=model,
            version=number,
        )

    def _judge(self, reference: str, manifest: Manifest, bundle: bytes) -> StoredSignature:
        digest, hint, message = hashlib.sha256(bundle).hexdigest(), "", ""
        try:
            hint = key_hint(bundle)
            message = difference(reference, manifest, verify(bundle, self._keys))
        except (UnverifiedVersionError, InvalidInputError) as error:
            message = error.message
        return StoredSignature(digest, bundle, hint, not message, message)

    def _folder(self, model: str, number: int) -> str:
        return f"{PREFIX}{validate_model_name(model)}/{number}/"
