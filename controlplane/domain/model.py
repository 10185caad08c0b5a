"""The head of a model: its only mutable document. The chain of its revisions is its history."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.manifest import Format, Sha256
from controlplane.domain.names import Reference
from controlplane.errors import AlreadyExistsError, ConflictError, NotFoundError


class VersionEntry(BaseModel):
    """A version as listed in its model's head; the manifest has the rest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: int = Field(ge=1, description="The version number, which is the same in Triton's model repository.")
    manifest: Sha256 = Field(description="SHA-256 of the manifest blob.")
    format: Format = Field(description="Format of the model.")
    size_bytes: int = Field(ge=0, description="Total size of its files in bytes.")
    servable: bool = Field(default=True, description="False if Triton cannot serve it; the manifest has the reason.")
    published_at: datetime = Field(description="When it was published (UTC).")
    published_by: str = Field(description="Who published it.")
    commit_id: str = Field(
        default="",
        description="Id of the commit that published it; repeating the publish with this id returns the same version.",
    )
    deleted: bool = Field(
        default=False,
        description="Whether it was deleted (a tombstone): the number is not reused, the files can be removed.",
    )
    deleted_at: datetime | None = Field(default=None, description="When it was deleted (UTC); null for a live version.")

    @property
    def runs(self) -> bool:
        """Whether Triton can serve it, as far as known."""
        return self.servable and self.format.runs


class ModelHead(BaseModel):
    """The mutable state of a model."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="The model's name.")
    description: str = Field(default="", description="Description of the model.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of the model.")
    versions: tuple[VersionEntry, ...] = Field(
        default=(), description="Versions in ascending order, including tombstones."
    )
    aliases: dict[str, int] = Field(default_factory=dict, description="Version numbers by alias.")
    deleted: bool = Field(default=False, description="Whether the whole model is deleted.")

    @property
    def live_versions(self) -> tuple[VersionEntry, ...]:
        """The versions that are not deleted."""
        return tuple(entry for entry in self.versions if not entry.deleted)

    @property
    def next_number(self) -> int:
        """The number of the next version. Numbers are never reused, not even after a deletion."""
        return self.versions[-1].number + 1 if self.versions else 1

    def require_free(self, number: int) -> None:
        """Check that a new version can have a number.

        Raises:
            AlreadyExistsError: A version has this number.
            ConflictError: The number is below the next one, or was that of a deleted version.
        """
        if number >= self.next_number:
            return
        name, taken = f"{self.name}:{number}", {entry.number: entry for entry in self.versions}.get(number)
        hint = f"use {self.next_number} or a higher number, or omit the number"
        if taken is None:
            raise ConflictError(
                f"{name} cannot be published: versions have ascending numbers, and the newest is "
                f"{self.next_number - 1}; {hint}",
                model=self.name,
                version=number,
            )
        if taken.deleted:
            raise ConflictError(
                f"{name} cannot be published: it was deleted, and a number is not used again; {hint}",
                model=self.name,
                version=number,
            )
        raise AlreadyExistsError(f"{name} exists with other content; {hint}", model=self.name, version=number)

    @property
    def newest_servable(self) -> VersionEntry | None:
        """The newest version that Triton can serve, as far as known; excludes sources that need a conversion."""
        return next((entry for entry in reversed(self.live_versions) if entry.runs), None)

    def version(self, number: int) -> VersionEntry:
        """Return a version that is not deleted.

        Raises:
            NotFoundError: There is no version with this number, or it was deleted.
        """
        for entry in self.versions:
            if entry.number == number:
                if entry.deleted:
                    raise NotFoundError(f"{self.name}:{number} was deleted", model=self.name, version=number)
                return entry
        have = ", ".join(str(entry.number) for entry in self.live_versions[-10:]) or "none"
        raise NotFoundError(
            f"{self.name} has no version {number}; its versions: {have}", model=self.name, version=number
        )

    def resolve(self, reference: Reference) -> VersionEntry:
        """Return the version that a reference names.

        Raises:
            NotFoundError: There is no such version or alias, or the model has no versions.
        """
        if reference.version is not None:
            return self.version(reference.version)
        if reference.alias is not None:
            if reference.alias not in self.aliases:
                have = ", ".join(sorted(self.aliases)) or "none"
                raise NotFoundError(
                    f"{self.name} has no alias {reference.alias!r}; its aliases: {have}",
                    model=self.name,
                    alias=reference.alias,
                )
            return self.version(self.aliases[reference.alias])
        if not self.live_versions:
            raise NotFoundError(f"{self.name} has no versions", model=self.name)
        return self.live_versions[-1]
