"""State of the scrub: blobs that are damaged or missing in the store, and the progress of its current pass."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.conditions import Condition, ConditionStatus


class Damage(BaseModel):
    """A blob whose content in the store differs from what was published."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sha256: str = Field(description="SHA-256 of the blob.")
    missing: bool = Field(description="Whether the blob is missing; otherwise its content does not match its digest.")
    path: str = Field(description="The file's path in the artifact, or the kind of blob: manifest, samples, log.")
    versions: tuple[str, ...] = Field(default=(), description="The versions that are known to need the blob.")
    found_at: datetime = Field(description="When the damage was found (UTC).")
    seen_at: datetime = Field(description="When the damage was last confirmed (UTC).")

    @property
    def reason(self) -> str:
        """The reason of events and conditions."""
        return "BlobMissing" if self.missing else "BlobDamaged"

    @property
    def message(self) -> str:
        """A readable description with the remedy."""
        what = (
            "is missing from the store"
            if self.missing
            else "is damaged in the store: its content does not match its SHA-256"
        )
        whose = f" of {', '.join(self.versions)}" if self.versions else ""
        return (
            f"{self.path}{whose} (blob {self.sha256}) {what}; push the same files again, or restore the object from a "
            "backup"
        )


class ScrubRecord(BaseModel):
    """The scrub's state, as kept in the store."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    started_at: datetime | None = Field(default=None, description="When the current or last pass began (UTC).")
    after: str = Field(default="", description="The last model that the current pass checked.")
    blobs: int = Field(default=0, description="Number of blobs checked in the current pass.")
    bytes: int = Field(default=0, description="Number of bytes read in the current pass.")
    finished_at: datetime | None = Field(default=None, description="When the last complete pass ended (UTC).")
    finished_blobs: int = Field(default=0, description="Number of blobs checked in that pass.")
    finished_bytes: int = Field(default=0, description="Number of bytes read in that pass.")
    damages: dict[str, Damage] = Field(default_factory=dict, description="Damaged and missing blobs, by SHA-256.")

    @property
    def running(self) -> bool:
        """Whether a pass is in progress."""
        return self.started_at is not None and (self.finished_at is None or self.finished_at < self.started_at)


def intact_condition(damages: tuple[Damage, ...]) -> Condition:
    """Return the condition ``Intact`` of a version, from the damage of its blobs."""
    if not damages:
        return Condition(type="Intact", status=ConditionStatus.TRUE, reason="NoDamageKnown")
    first = min(damages, key=lambda damage: damage.found_at)
    return Condition(
        type="Intact",
        status=ConditionStatus.FALSE,
        reason=first.reason,
        message="; ".join(damage.message for damage in damages),
        last_transition_time=first.found_at,
    )
