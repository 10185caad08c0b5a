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

    bundle: dict[str, Any] = Field(description="A Sigstore bundle, as created by `tritonctl sign` or `model_signing`.")

    def document(self) -> bytes:
        """Return the bundle's bytes as they are stored."""
        return json.dumps(self.bundle, allow_nan=False).encode()


class SignatureView(BaseModel):
    """A signature and the result of its verification."""

    sha256: str = Field(description="SHA-256 of the bundle; identifies the signature.")
    key: str = Field(description="SHA-256 of the public key, as stated in the bundle (not verified).")
    good: bool = Field(description="Whether a trusted key signed exactly this version.")
    message: str = Field(description="Why the signature is not valid; empty if it is.")
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

    required: bool = Field(description="Whether only versions with a valid signature can be deployed.")
    verified: bool = Field(description="Whether the version has a valid signature.")
    items: list[SignatureView] = Field(description="The signatures.")
    staged: list[StagedCopy] = Field(
        description="The copies in the servers' model repositories, as compared for this response."
    )
