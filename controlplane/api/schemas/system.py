"""Health, garbage collection, and the control plane itself."""

from pydantic import BaseModel, ConfigDict, Field


class FsckRequest(BaseModel):
    """Check every chain, blob and reference of the store."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"deep": True}]})

    deep: bool = Field(default=False, description="Read every blob and compare it with its digest.")
    repair: bool = Field(default=False, description="Repair everything that can be repaired without data loss.")
    accept: list[str] = Field(
        default_factory=list,
        max_length=1000,
        description="Chains that lost revisions (models/NAME, deployments/NAME, keys, cordons): accept their "
        "current state.",
    )
    restore: list[str] = Field(
        default_factory=list,
        max_length=1000,
        description="Chains that lost revisions: restore their newest lost revision.",
    )
    reason: str = Field(default="", max_length=2000, description="Reason; recorded in the history.")


class GcRequest(BaseModel):
    """Remove unreferenced files."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"dry_run": True}]})

    dry_run: bool = Field(default=True, description="Only report what would be removed.")
    grace_seconds: float | None = Field(
        default=None,
        ge=0,
        le=10 * 365 * 86_400,
        allow_inf_nan=False,
        description="Minimum age of removed objects; null: the setting.",
    )
