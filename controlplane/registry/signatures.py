"""Signatures of versions, and whether a version may be deployed.

A signature is an object of its own, ``signatures/NAME/7/SHA256.json``, created and never changed: a version can be
signed after it was published (a converted one was never on anybody's machine before), and by several.
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
    """A signature as it is kept, with what it is worth.

    Attributes:
        sha256: Of the bundle.
        bundle: The Sigstore bundle.
        key_id: The key that made it, by its own word.
        good: Whether a trusted key signed this version as it is.
        message: Why not.
    """

    sha256: str
    bundle: bytes
    key_id: str
    good: bool
    message: str


class Signatures:
    """Keeps signatures and judges versions by them. Blocks; safe to use from several threads.

    Raises:
        InvalidInputError: Signatures are required and no public key is given, or one cannot be read.
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
        """Keep a signature. The same again is no error.

        Raises:
            InvalidInputError: It is no signature.
            TooLargeError: It is larger than any signature.
            UnverifiedVersionError: Keys are trusted here, and it is not good by them.
            ConflictError: The version has too many.
        """
        if len(bundle) > BUNDLE_MAX_BYTES:
            raise TooLargeError(f"a signature has at most {BUNDLE_MAX_BYTES} bytes, not {len(bundle)}")
        key_hint(bundle)
        signature = self._judge(f"{model}:{number}", manifest, bundle)
        if self._keys and not signature.good:
            raise UnverifiedVersionError(f"the signature of {model}:{number} is not accepted: {signature.message}")
        if len(list(self._store.list(self._folder(model, number), limit=SIGNATURES_MAX))) >= SIGNATURES_MAX:
            raise ConflictError(f"{model}:{number} has {SIGNATURES_MAX} signatures, and no more than that can be")
        try:
            self._store.create(f"{self._folder(model, number)}{signature.sha256}.json", bundle)
        except ObjectExistsError:
            return signature
        return signature

    def list(self, model: str, number: int, manifest: Manifest) -> list[StoredSignature]:
        """Return a version's signatures, each judged."""
        found = list(self._store.list(self._folder(model, number), limit=SIGNATURES_MAX))
        return [self._judge(f"{model}:{number}", manifest, self._store.get(info.key)) for info in found]

    def demand(self, model: str, number: int, manifest: Manifest) -> None:
        """Raise UnverifiedVersionError unless the version may be deployed.

        It may where signatures are not required, or a trusted key signed the version as it is now. Staging reads the
        files by the manifest's digests and checks them, so what was judged here is what Triton gets.
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
