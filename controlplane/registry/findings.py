"""Findings of a check of the whole store (`controlplane.registry.fsck`)."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Severity(StrEnum):
    """The severity of a finding."""

    ERROR = "error"
    """Committed data cannot be read or used."""
    WARNING = "warning"
    """No relevant data is lost, or the loss cannot be determined."""


class Finding(BaseModel):
    """One problem in the store."""

    model_config = ConfigDict(frozen=True)

    severity: Severity = Field(description="error or warning.")
    reason: str = Field(description="What kind of damage, as one word.", examples=["BlobMissing"])
    subject: str = Field(description="The chain, version or object that is concerned.", examples=["models/resnet"])
    message: str = Field(description="What was found.")
    advice: str = Field(default="", description="What to do about it.")
    repaired: bool = Field(default=False, description="Whether it was repaired by this run.")


class FsckReport(BaseModel):
    """The scope and the findings of a check."""

    model_config = ConfigDict(frozen=True)

    store: str = Field(description="The store's URL.")
    deep: bool = Field(description="Whether the content of every blob was read.")
    chains: int = Field(description="Chains of revisions.")
    revisions: int = Field(description="Revisions that could be read.")
    blobs: int = Field(description="Blobs in the store.")
    blobs_unreferenced: int = Field(description="Blobs that no version refers to; garbage collection's business.")
    bytes_read: int = Field(description="Bytes of blobs that were read and compared with their digests.")
    decided: tuple[str, ...] = Field(default=(), description="The operator's decisions that this run committed.")
    findings: tuple[Finding, ...] = Field(default=(), description="What is wrong, errors first.")

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Return the errors that were not repaired."""
        return tuple(one for one in self.findings if one.severity is Severity.ERROR and not one.repaired)
