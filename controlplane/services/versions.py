"""Versions: look-up, download and deletion."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextvars import copy_context
from functools import partial
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.manifest import FileEntry, Manifest
from controlplane.domain.model import ModelHead, VersionEntry
from controlplane.domain.names import LATEST, Reference, candidate_name, validate_alias, validate_model_name
from controlplane.domain.recorded_samples import SampleRecord
from controlplane.domain.report import VersionReport
from controlplane.errors import (
    AgentError,
    DigestMismatchError,
    InvalidArtifactError,
    InvalidReferenceError,
    NotFoundError,
)
from controlplane.registry.footprints import FootprintKey, MeasuredFootprint
from controlplane.registry.registry import Registry
from controlplane.registry.signatures import StoredSignature
from controlplane.servers.server import ManagedServer

_MANIFESTS_KEPT = 1024
_CHUNK_BYTES = 1 << 20


def parse_selector(model: str, selector: str) -> Reference:
    """Parse a version as a URL names it: ``7``, ``@champion`` or ``latest``.

    Raises:
        InvalidReferenceError: The selector has none of these forms.
    """
    validate_model_name(model)
    if selector == LATEST:
        return Reference(model)
    if selector.startswith("@"):
        alias = selector[1:]
        return Reference(model) if alias == LATEST else Reference(model, alias=validate_alias(alias))
    if selector.isascii() and selector.isdigit() and len(selector) <= 9 and not selector.startswith("0"):
        return Reference(model, version=int(selector))
    raise InvalidReferenceError(f"{selector[:80]!r} is not a version; use a number, @alias or latest")


class StagedCopy(BaseModel):
    """A copy of a version in a server's model repository."""

    model_config = ConfigDict(frozen=True)

    server: str = Field(description="The server.")
    name: str = Field(description="The model's name in Triton.")
    intact: bool = Field(description="Whether it contains exactly the published files.")
    message: str = Field(description="What is wrong; empty if nothing is.")


class Download:
    """One blob to be sent."""

    def __init__(self, registry: Registry, file: FileEntry) -> None:
        self._registry = registry
        self.file = file

    async def read(self, start: int, length: int) -> AsyncGenerator[bytes]:
        """Yield the bytes with constant memory. The digest of a whole file is verified; a mismatch aborts the transfer.

        Raises:
            DigestMismatchError: The store's bytes are not those that were published.
        """
        whole = start == 0 and length == self.file.size_bytes
        digest = hashlib.sha256()
        if whole:
            stream = await self._open()
            try:
                while chunk := await asyncio.to_thread(stream.read, _CHUNK_BYTES):
                    digest.update(chunk)
                    yield chunk
            finally:
                # Nothing is awaited here, so that a reader that is cancelled again, or garbage-collected, closes as
                # well.
                stream.close()
            if digest.hexdigest() != self.file.sha256:
                raise DigestMismatchError(f"blob {self.file.sha256} is damaged in the store", sha256=self.file.sha256)
            return
        position, end = start, start + length
        while position < end:
            count = min(4 * _CHUNK_BYTES, end - position)
            yield await asyncio.to_thread(self._registry.blobs.read_part, self.file.sha256, position, count)
            position += count

    async def _open(self) -> BinaryIO:
        """Open the blob; if the caller is cancelled meanwhile, close it as soon as it is open."""
        call = partial(copy_context().run, self._registry.open_blob, self.file.sha256)
        opening = asyncio.get_running_loop().run_in_executor(None, call)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise


def _close_opened(opening: "asyncio.Future[BinaryIO]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class Versions:
    """Use cases for published versions."""

    def __init__(self, registry: Registry, servers: Sequence[ManagedServer]) -> None:
        self._registry = registry
        self._servers = servers
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()

    async def select(self, model: str, selector: str) -> VersionEntry:
        """Return the version that a selector names.

        Raises:
            NotFoundError: The version does not exist.
        """
        reference = parse_selector(model, selector)
        head = self._registry.peek_model(model)
        if head is not None:
            try:
                return head.resolve(reference)
            except NotFoundError:
                pass  # it may be newer than the state in memory
        return await asyncio.to_thread(self._registry.resolve, reference)

    async def detail(self, model: str, selector: str) -> tuple[ModelHead, VersionEntry, Manifest]:
        """Return a version, its model's head and its manifest."""
        entry = await self.select(model, selector)
        head = self._registry.peek_model(model)
        if head is None:
            head = await asyncio.to_thread(self._registry.get_model, model)
        return head, entry, await self.manifest(model, entry)

    async def manifest(self, model: str, entry: VersionEntry) -> Manifest:
        """Return a version's manifest; without a thread once it was read, because it never changes."""
        known = self._manifests.get(entry.manifest)
        if known is None:
            known = await asyncio.to_thread(self._registry.manifest, model, entry.number)
            self._manifests[entry.manifest] = known
            if len(self._manifests) > _MANIFESTS_KEPT:
                self._manifests.popitem(last=False)
        return known

    async def footprints(self, model: str, selector: str) -> list[tuple[FootprintKey, MeasuredFootprint]]:
        """Return the measured memory of a version, for each way it was run."""
        entry = await self.select(model, selector)
        return await asyncio.to_thread(self._registry.footprints.of, model, entry.number)

    async def download(self, model: str, selector: str, path: str) -> Download:
        """Return a file of a version, to be sent.

        Raises:
            NotFoundError: The version has no such file.
        """
        _, entry, manifest = await self.detail(model, selector)
        for file in manifest.files:
            if file.path == path:
                return Download(self._registry, file)
        have = ", ".join(file.path for file in manifest.files[:10])
        raise NotFoundError(
            f"{model}:{entry.number} has no file {path[:120]!r}; it has {have}",
            model=model,
            version=entry.number,
        )

    async def samples(self, model: str, selector: str) -> Download:
        """Return a version's golden samples, to be sent.

        Raises:
            NotFoundError: The version has none.
        """
        _, entry, manifest = await self.detail(model, selector)
        if manifest.golden is None:
            raise NotFoundError(f"{model}:{entry.number} has no golden samples", model=model, version=entry.number)
        return Download(self._registry, manifest.golden.file)

    async def recorded_samples(self, model: str, entry: VersionEntry, manifest: Manifest) -> list[SampleRecord]:
        """Return the records of samples that count for a version, the oldest first; none if one is damaged."""
        try:
            found = await asyncio.to_thread(self._registry.recorded.read, model, entry.number)
        except InvalidArtifactError:
            return []  # a version with a damaged record is shown; `samples list` reports the damage
        records = (record for record, _ in found if record.content == manifest.content_digest)
        return sorted(records, key=lambda record: record.at)

    async def log(self, model: str, selector: str) -> Download:
        """Return the log of the conversion that made a version.

        Raises:
            NotFoundError: The version was not converted.
        """
        _, entry, manifest = await self.detail(model, selector)
        if manifest.lineage is None or manifest.lineage.log is None:
            raise NotFoundError(f"{model}:{entry.number} has no conversion log", model=model, version=entry.number)
        return Download(self._registry, manifest.lineage.log)

    async def reports(self, model: str, selector: str, *, before: int | None, limit: int) -> list[VersionReport]:
        """Return the reports about a version on servers, newest first.

        Raises:
            InvalidReferenceError: The selector is not valid.
            NotFoundError: The model, the alias or the version does not exist.
        """
        entry = await asyncio.to_thread(self._registry.resolve, parse_selector(model, selector))
        return await asyncio.to_thread(self._registry.reports.history, model, entry.number, limit=limit, before=before)

    async def delete(self, model: str, selector: str, *, actor: str, reason: str) -> None:
        """Delete a version.

        Raises:
            InUseError: An alias points to it, or a deployment uses it.
        """
        entry = await self.select(model, selector)
        await asyncio.to_thread(lambda: self._registry.delete_version(model, entry.number, actor=actor, reason=reason))

    async def sign(self, model: str, selector: str, bundle: bytes) -> StoredSignature:
        """Store a signature of a version (NotFoundError; and what `Signatures.add` raises)."""
        entry = await self.select(model, selector)
        return await asyncio.to_thread(
            lambda: self._registry.signatures.add(
                model, entry.number, self._registry.manifest(model, entry.number), bundle
            )
        )

    async def signatures(self, model: str, selector: str) -> list[StoredSignature]:
        """Return a version's signatures, each verified with the keys that are trusted here (NotFoundError)."""
        entry = await self.select(model, selector)
        return await asyncio.to_thread(
            lambda: self._registry.signatures.list(model, entry.number, self._registry.manifest(model, entry.number))
        )

    async def staged(self, model: str, selector: str) -> list[StagedCopy]:
        """Compare the copies of a version in the servers' model repositories with its manifest (NotFoundError).

        A file is read only if it has changed since it was last hashed.
        """
        entry = await self.select(model, selector)
        return await asyncio.to_thread(self._staged, model, entry.number)

    def _staged(self, model: str, number: int) -> list[StagedCopy]:
        manifest = self._registry.manifest(model, number)
        copies = []
        for server in self._servers:
            for name in (model, candidate_name(model)):
                try:
                    wrong = server.repository.differences(name, number, manifest)
                except AgentError as error:
                    wrong = [f"not compared: {error.message}"]
                if wrong is not None:
                    copies.append(StagedCopy(server=server.name, name=name, intact=not wrong, message="; ".join(wrong)))
        return copies

    @property
    def signatures_required(self) -> bool:
        """Return whether a version must be signed to be deployed."""
        return self._registry.signatures.required
