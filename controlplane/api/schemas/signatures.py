"""Signatures of versions."""

import base64
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from controlplane.registry.signatures import StoredSignature
from controlplane.services.versions import StagedCopy


class SignatureRequest(BaseModel):
    """Add a signature to a version."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "bundle": {
                        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                        "verificationMaterial": {"publicKey": {"hint": "9f86d0…"}, "tlogEntries": []},
                        "dsseEnvelope": {
                            "payload": "…",
                            "payloadType": "application/vnd.in-toto+json",
                            "signatures": [],
                        },
                    }
                }
            ]
        },
    )

    bundle: dict[str, Any] = Field(description="A Sigstore bundle, as `tritonctl sign` and `model_signing` make it.")

    def document(self) -> bytes:
        """Return the bundle's bytes as they are stored."""
        return json.dumps(self.bundle, allow_nan=False).encode()


class SignatureView(BaseModel):
    """A signature and the result of its verification."""

    sha256: str = Field(description="SHA-256 of the bundle; names the signature.")
    key: str = Field(description="SHA-256 of the public key that made it, by its own word.")
    good: bool = Field(description="Whether a key that is trusted here signed the version as it is.")
    message: str = Field(description="Why not; empty where it is good.")
    bundle: str = Field(description="The Sigstore bundle, in base64.")

    @classmethod
    def of(cls, signature: StoredSignature) -> "SignatureView":
        """Return the public form of a signature."""
        return cls(
            sha256=signature.sha256,
            key=signature.key_id,
            good=signature.good,
            message=signature.message,
            bundle=base64.b64encode(signature.bundle).decode(),
        )


class SignatureList(BaseModel):
    """A version's signatures."""

    required: bool = Field(description="Whether a version is only deployed with a good one.")
    verified: bool = Field(description="Whether one of them is good.")
    items: list[SignatureView] = Field(description="The signatures.")
    staged: list[StagedCopy] = Field(description="The copies in the servers' model repositories, compared just now.")
