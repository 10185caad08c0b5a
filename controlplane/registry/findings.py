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

    severity: Severity = Field(description="Severity: error or warning.")
    reason: str = Field(description="Kind of damage, as one CamelCase word.", examples=["BlobMissing"])
    subject: str = Field(description="The damaged chain, version or object.", examples=["models/resnet"])
    message: str = Field(description="What is wrong, as one sentence.")
    advice: str = Field(default="", description="How to repair it.")
    repaired: bool = Field(default=False, description="Whether this run repaired it.")


class FsckReport(BaseModel):
    """The scope and the findings of a check."""

    model_config = ConfigDict(frozen=True)

    store: str = Field(description="The store's URL.")
    deep: bool = Field(description="Whether the content of every blob was read.")
    chains: int = Field(description="Number of chains of revisions.")
    revisions: int = Field(description="Number of readable revisions.")
    blobs: int = Field(description="Number of blobs in the store.")
    blobs_unreferenced: int = Field(
        description="Number of blobs that no version refers to; garbage collection removes them."
    )
    bytes_read: int = Field(description="Bytes of blobs that were read and compared with their digests.")
    decided: tuple[str, ...] = Field(default=(), description="The operator's decisions that this run committed.")
    findings: tuple[Finding, ...] = Field(default=(), description="The findings, errors first.")

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Return the errors that were not repaired."""
        return tuple(one for one in self.findings if one.severity is Severity.ERROR and not one.repaired)
