"""Uploads: files that will become a version, a part of one (samples), or are only validated.

The client announces files with size and SHA-256, learns which contents are missing, and sends those, through the API
(resumable) or directly to the bucket (presigned). Nothing is visible to others before a version is published from it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from controlplane.domain.manifest import FileEntry
from controlplane.errors import (
    ConflictError,
    DigestMismatchError,
    InvalidArtifactError,
    InvalidInputError,
    NotFoundError,
    ObjectNotFoundError,
    TooLargeError,
)
from controlplane.registry.registry import Registry
from controlplane.services.uploads.spool import Spool
from controlplane.services.uploads.types import BlobState, PresignedBlob, Upload, UploadFile, UploadManifest
from controlplane.storage.base import PresignedPut

logger = logging.getLogger(__name__)

INCOMING = "incoming/"
MAX_FILES = 10_000
_BUFFER_BYTES = 1 << 20


class Uploads:
    """The uploads of this instance. Their bytes are on its disk, or in the bucket if they were there before."""

    def __init__(self, spool: Spool, registry: Registry, *, max_bytes: int) -> None:
        self._spool = spool
        self._registry = registry
        self._store = registry.store
        self._max_bytes = max_bytes
        self._receiving: set[tuple[str, str]] = set()
        self._in_use: dict[str, int] = {}

    async def create(self, files: Iterable[FileEntry], *, actor: str) -> Upload:
        """Announce files.

        Raises:
            InvalidInputError: There are no files or too many, one path occurs twice, or one content has two sizes.
            TooLargeError: More bytes than an artifact may have.
        """
        entries = tuple(files)
        _check(entries, self._max_bytes)
        stored, holds = await asyncio.to_thread(self._look, entries)
        announcement = UploadManifest(
            actor=actor, created_at=datetime.now(UTC), files=entries, stored=stored, holds=holds
        )
        upload_id = secrets.token_hex(10)
        await asyncio.to_thread(self._spool.create, upload_id, announcement.model_dump_json(indent=1).encode())
        return self._describe(upload_id, announcement)

    async def get(self, upload_id: str) -> Upload:
        """Return an upload.

        Raises:
            NotFoundError: No upload on this instance has this identifier.
        """
        return self._describe(upload_id, await self._read(upload_id))

    async def delete(self, upload_id: str) -> None:
        """Delete an upload and its bytes.

        Raises:
            NotFoundError: The upload does not exist.
            ConflictError: It is being published, or bytes are arriving for it.
        """
        announcement = await self._read(upload_id)
        if self._in_use.get(upload_id) or any(upload == upload_id for upload, _ in self._receiving):
            raise ConflictError(
                f"upload {upload_id} is in use; wait until the operation that uses it ends", upload=upload_id
            )
        await asyncio.to_thread(self._drop, upload_id, announcement)

    async def discard(self, upload_id: str) -> None:
        """Delete an upload that was published; one that is missing or still needed is left alone."""
        with suppress(NotFoundError, ConflictError):
            await self.delete(upload_id)

    async def blob(self, upload_id: str, sha256: str) -> UploadFile:
        """Return how much of a blob has been received.

        Raises:
            NotFoundError: The upload does not exist, or has no such blob.
        """
        announcement = await self._read(upload_id)
        return self._file(upload_id, announcement, _entry(upload_id, announcement, sha256))

    async def receive(
        self, upload_id: str, sha256: str, chunks: AsyncIterator[bytes], *, offset: int | None
    ) -> UploadFile:
        """Receive a blob's bytes, or the rest of them from ``offset`` on.

        Args:
            upload_id: The upload.
            sha256: The blob.
            chunks: The bytes as they arrive.
            offset: Where they begin; None starts over.

        Raises:
            NotFoundError: The upload does not exist, or has no such blob.
            ConflictError: ``offset`` is not where the bytes received so far end, or another transfer is in progress.
            InvalidArtifactError: There are too many bytes, or their digest differs.
            StoreFullError: The local disk is full.
        """
        announcement = await self._read(upload_id)
        entry = _entry(upload_id, announcement, sha256)
        if self._is_here(upload_id, announcement, sha256):
            return self._file(upload_id, announcement, entry)  # not read: the server closes the connection
        received = self._spool.received(upload_id, sha256)
        if offset is not None and offset != received:
            raise ConflictError(
                f"blob {sha256}: {received} bytes were received, but the transfer begins at {offset}; "
                f"continue from {received}",
                sha256=sha256,
                received_bytes=received,
            )
        slot = (upload_id, sha256)
        if slot in self._receiving:
            raise ConflictError(f"blob {sha256} is being received by another request", sha256=sha256)
        self._receiving.add(slot)
        try:
            writer = await asyncio.to_thread(self._spool.writer, upload_id, sha256, entry.size_bytes, offset or 0)
            try:
                async for block in _blocks(chunks):
                    await asyncio.to_thread(writer.write, block)
            finally:
                # Also if the client has disconnected: received bytes are kept, so that it can resume from there.
                whole = await asyncio.shield(asyncio.to_thread(writer.finish))
        finally:
            self._receiving.discard(slot)
        if not whole:
            logger.info(
                "upload %s: the transfer of blob %s was interrupted at %d bytes", upload_id, sha256, writer.offset
            )
        return self._file(upload_id, announcement, entry)

    async def presign(self, upload_id: str, *, expires_seconds: int) -> tuple[PresignedBlob, ...]:
        """Return URLs with which the client writes the missing blobs directly to the bucket.

        Raises:
            NotFoundError: The upload does not exist.
            InvalidInputError: This store does not support presigned URLs.
        """
        announcement = await self._read(upload_id)
        missing = {file.sha256: file for file in self._describe(upload_id, announcement).missing}
        hold = await asyncio.to_thread(self._registry.hold_blobs, list(missing), f"upload {upload_id}")
        await self._rewrite(upload_id, announcement.model_copy(update={"holds": (*announcement.holds, hold)}))
        blobs = []
        for entry in missing.values():
            put: PresignedPut | None = await asyncio.to_thread(
                self._store.presign_put,
                _incoming(upload_id, entry.sha256),
                size_bytes=entry.size_bytes,
                expires_seconds=expires_seconds,
            )
            if put is None:
                raise InvalidInputError(
                    f"the store {self._store.url} does not support direct uploads; send the blobs through the API"
                )
            blobs.append(
                PresignedBlob(
                    sha256=entry.sha256,
                    size_bytes=entry.size_bytes,
                    multipart_id=put.upload_id,
                    part_size_bytes=put.part_size_bytes,
                    urls=put.urls,
                    expires_at=put.expires_at,
                )
            )
        return tuple(blobs)

    async def complete(self, upload_id: str, sha256: str, *, multipart_id: str) -> UploadFile:
        """Accept a blob that was written directly: join its parts, read it back, and compare its digest.

        It is read back because several S3 servers accept a checksum header and never verify it.

        Raises:
            NotFoundError: The upload or the blob does not exist.
            InvalidArtifactError: The digest or the size differs; the written object is removed.
        """
        announcement = await self._read(upload_id)
        entry = _entry(upload_id, announcement, sha256)
        if not self._is_here(upload_id, announcement, sha256):
            await asyncio.to_thread(self._complete, upload_id, entry, multipart_id)
            announcement = await self._read(upload_id)
            announcement = announcement.model_copy(update={"stored": announcement.stored | {sha256}})
            await self._rewrite(upload_id, announcement)
        return self._file(upload_id, announcement, entry)

    def use(self, upload_id: str) -> "UploadInUse":
        """Protect an upload from deletion while the ``with`` block runs."""
        return UploadInUse(self._in_use, upload_id)

    async def whole(self, upload_id: str) -> Upload:
        """Return an upload whose contents have all been received.

        Raises:
            NotFoundError: The upload does not exist.
            ConflictError: Some content is missing.
        """
        upload = await self.get(upload_id)
        if missing := upload.missing:
            raise ConflictError(
                f"upload {upload_id}: {len(missing)} of {len(upload.files)} files are missing, for "
                f"example {missing[0].path!r}; send them first",
                upload=upload_id,
                missing=[file.path for file in missing[:20]],
            )
        return upload

    def path(self, upload_id: str, sha256: str) -> Path | None:
        """Return the path of a blob on this machine's disk; None if it is only in the store."""
        return self._spool.complete(upload_id, sha256)

    def collect(self, max_age_seconds: float, *, dry_run: bool = False) -> int:
        """Delete uploads that received nothing for that long, and return their number."""
        dropped = 0
        for upload_id in self._spool.ids():
            if self._in_use.get(upload_id) or any(upload == upload_id for upload, _ in self._receiving):
                continue
            if self._spool.age_seconds(upload_id, time.time()) > max_age_seconds:
                dropped += 1
                data = self._spool.read(upload_id)
                if not dry_run and data is not None:
                    self._drop(upload_id, UploadManifest.model_validate_json(data))
        return dropped

    def _drop(self, upload_id: str, announcement: UploadManifest) -> None:
        self._spool.remove(upload_id)
        for hold in announcement.holds:
            self._registry.release_blobs(hold)

    async def _rewrite(self, upload_id: str, announcement: UploadManifest) -> None:
        await asyncio.to_thread(self._spool.rewrite, upload_id, announcement.model_dump_json(indent=1).encode())

    async def _read(self, upload_id: str) -> UploadManifest:
        known = len(upload_id) == 20 and all(character in "0123456789abcdef" for character in upload_id)
        data = await asyncio.to_thread(self._spool.read, upload_id) if known else None
        if data is None:
            raise NotFoundError(
                f"unknown upload {upload_id[:80]!r} on this instance: it was published, deleted or has expired",
                upload=upload_id[:80],
            )
        return UploadManifest.model_validate_json(data)

    def _describe(self, upload_id: str, announcement: UploadManifest) -> Upload:
        return Upload(
            id=upload_id,
            actor=announcement.actor,
            created_at=announcement.created_at,
            files=tuple(self._file(upload_id, announcement, entry) for entry in announcement.files),
        )

    def _file(self, upload_id: str, announcement: UploadManifest, entry: FileEntry) -> UploadFile:
        present = self._is_here(upload_id, announcement, entry.sha256)
        received = entry.size_bytes if present else self._spool.received(upload_id, entry.sha256)
        state = BlobState.PRESENT if present else BlobState.MISSING
        return UploadFile(
            path=entry.path,
            sha256=entry.sha256,
            size_bytes=entry.size_bytes,
            state=state,
            received_bytes=min(received, entry.size_bytes),
        )

    def _is_here(self, upload_id: str, announcement: UploadManifest, sha256: str) -> bool:
        """Return whether a content need not be sent. A damaged copy in the store does not count: sending repairs it."""
        stored = sha256 in announcement.stored and not self._registry.damages.is_known(sha256)
        return stored or self._spool.complete(upload_id, sha256) is not None

    def _look(self, entries: tuple[FileEntry, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
        """Return which contents the store has, and the holds that keep them there."""
        wanted = {entry.sha256: entry.size_bytes for entry in entries}

        def present(digests: Iterable[str]) -> frozenset[str]:
            sizes = self._registry.blobs.sizes_of(list(digests))
            return frozenset(digest for digest, size in sizes.items() if size == wanted[digest])

        found = present(wanted)
        if not found:
            return found, ()
        hold = self._registry.hold_blobs(found, "upload")
        return present(found), (hold,)  # check again: a blob that was collected before the hold existed is missing now

    def _complete(self, upload_id: str, entry: FileEntry, multipart_id: str) -> None:
        key = _incoming(upload_id, entry.sha256)
        try:
            self._store.complete_presigned(key, multipart_id)
        except ObjectNotFoundError:
            # An earlier call joined the parts and its response was lost: the object, or the blob, exists.
            if self._store.head(key) is None:
                if self._registry.blobs.size_of(entry.sha256) == entry.size_bytes:
                    return
                raise
        try:
            self._registry.blobs.adopt(key, entry.sha256, entry.size_bytes)
        except DigestMismatchError as error:
            raise InvalidArtifactError(
                f"the content written for blob {entry.sha256} has a different digest and was removed; "
                "request new URLs and send it again",
                sha256=entry.sha256,
            ) from error


def _incoming(upload_id: str, sha256: str) -> str:
    """Return the key under which a client writes a blob directly, until its content has been verified."""
    return f"{INCOMING}{upload_id}/{sha256}"


class UploadInUse:
    """Counts the users of an upload."""

    def __init__(self, counts: dict[str, int], upload_id: str) -> None:
        self._counts = counts
        self._upload_id = upload_id

    def __enter__(self) -> None:
        self._counts[self._upload_id] = self._counts.get(self._upload_id, 0) + 1

    def __exit__(self, *_: object) -> None:
        self._counts[self._upload_id] -= 1
        if not self._counts[self._upload_id]:
            del self._counts[self._upload_id]


def _check(entries: tuple[FileEntry, ...], max_bytes: int) -> None:
    if not entries:
        raise InvalidInputError("an upload needs at least one file")
    if len(entries) > MAX_FILES:
        raise TooLargeError(
            f"an upload can have at most {MAX_FILES} files; this one has {len(entries)}", limit=MAX_FILES
        )
    total = sum(entry.size_bytes for entry in entries)
    if total > max_bytes:
        raise TooLargeError(
            f"the files have {total} bytes in total; at most {max_bytes} are accepted", limit_bytes=max_bytes
        )
    paths: set[str] = set()
    sizes: dict[str, int] = {}
    for entry in entries:
        if entry.path in paths:
            raise InvalidInputError(f"the path {entry.path!r} appears more than once", path=entry.path)
        paths.add(entry.path)
        if sizes.setdefault(entry.sha256, entry.size_bytes) != entry.size_bytes:
            raise InvalidInputError(f"content {entry.sha256} is announced with two sizes", sha256=entry.sha256)


def _entry(upload_id: str, announcement: UploadManifest, sha256: str) -> FileEntry:
    for entry in announcement.files:
        if entry.sha256 == sha256:
            return entry
    raise NotFoundError(
        f"upload {upload_id} did not announce blob {sha256[:80]!r}", upload=upload_id, sha256=sha256[:80]
    )


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join small chunks: a thread hop for each 64 KiB that the server passes on would cost more than the write."""
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        if len(buffer) >= _BUFFER_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)
