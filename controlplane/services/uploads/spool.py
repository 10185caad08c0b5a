"""The local storage of uploads: received bytes, kept until they are published, across restarts and lost connections.

::

    <root>/<upload id>/upload.json       what was announced
    <root>/<upload id>/blobs/<sha256>    complete and verified
    <root>/<upload id>/blobs/<sha256>.partial   received so far

A blob is renamed to its name without ``.partial`` after its digest is verified, so a file with that name is complete.
"""

import errno
import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from controlplane.errors import InvalidArtifactError, StoreFullError

_CHUNK_BYTES = 1 << 20


class Spool:
    """Folders of uploads below one root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        for path in root.iterdir():
            if not (
                path / "upload.json"
            ).is_file():  # killed between creating the folder and its announcement, or while removing it
                shutil.rmtree(path, ignore_errors=True)

    def folder(self, upload_id: str) -> Path:
        """Return an upload's folder, which may not exist."""
        return self._root / upload_id

    def ids(self) -> list[str]:
        """Return the identifiers of the existing uploads."""
        return sorted(path.name for path in self._root.iterdir() if (path / "upload.json").is_file())

    def create(self, upload_id: str, document: bytes) -> None:
        """Store an upload's announcement."""
        (self.folder(upload_id) / "blobs").mkdir(parents=True)
        self.rewrite(upload_id, document)

    def rewrite(self, upload_id: str, document: bytes) -> None:
        """Replace an upload's announcement atomically."""
        temporary = self.folder(upload_id) / "upload.json.tmp"
        temporary.write_bytes(document)
        temporary.replace(self.folder(upload_id) / "upload.json")

    def read(self, upload_id: str) -> bytes | None:
        """Return the document that `create` stored; None if the upload does not exist."""
        try:
            return (self.folder(upload_id) / "upload.json").read_bytes()
        except FileNotFoundError:
            return None

    def age_seconds(self, upload_id: str, now: float) -> float:
        """Return the seconds since the upload last received anything."""
        with suppress(FileNotFoundError):
            folder = self.folder(upload_id) / "blobs"
            newest = max((path.stat().st_mtime for path in folder.iterdir()), default=folder.stat().st_mtime)
            return now - newest
        return 0.0

    def remove(self, upload_id: str) -> None:
        """Remove an upload with its bytes."""
        folder = self.folder(upload_id)
        with suppress(FileNotFoundError):
            (folder / "upload.json").unlink()  # first: a folder without it is not an upload any more
        shutil.rmtree(folder, ignore_errors=True)

    def complete(self, upload_id: str, sha256: str) -> Path | None:
        """Return a verified blob's path; None if it is not complete."""
        path = self.folder(upload_id) / "blobs" / sha256
        return path if path.is_file() else None

    def received(self, upload_id: str, sha256: str) -> int:
        """Return how many bytes of a blob have been received."""
        for name in (sha256, f"{sha256}.partial"):
            with suppress(FileNotFoundError):
                return (self.folder(upload_id) / "blobs" / name).stat().st_size
        return 0

    def writer(self, upload_id: str, sha256: str, size_bytes: int, offset: int) -> "BlobWriter":
        """Open a blob for writing from ``offset``, which must not exceed the number of received bytes."""
        return BlobWriter(self.folder(upload_id) / "blobs" / sha256, sha256, size_bytes, offset)


class BlobWriter:
    """Receives one blob, or the rest of it. Blocking; used by one thread at a time."""

    def __init__(self, target: Path, sha256: str, size_bytes: int, offset: int) -> None:
        self._target = target
        self._partial = target.with_name(f"{target.name}.partial")
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._digest = hashlib.sha256()
        self.offset = offset
        self._file: BinaryIO = self._open(offset)

    def _open(self, offset: int) -> BinaryIO:
        file = self._partial.open("r+b" if offset else "wb")
        # The digest of the earlier bytes is not stored: they are read again, once per resumption.
        left = offset
        while left:
            chunk = file.read(min(_CHUNK_BYTES, left))
            if not chunk:
                break
            self._digest.update(chunk)
            left -= len(chunk)
        file.truncate(offset)
        file.seek(offset)
        return file

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            InvalidArtifactError: There are more bytes than were announced.
            StoreFullError: The local disk is full.
        """
        if self.offset + len(data) > self._size_bytes:
            raise InvalidArtifactError(
                f"blob {self._sha256} was announced with {self._size_bytes} bytes, but more were received",
                sha256=self._sha256,
                size_bytes=self._size_bytes,
            )
        try:
            self._file.write(data)
        except OSError as error:
            raise _full(error, self._partial) from error
        self._digest.update(data)
        self.offset += len(data)

    def finish(self) -> bool:
        """Close; verify and rename a complete blob. Return whether it is complete.

        Raises:
            InvalidArtifactError: All bytes have been received and their digest differs; they are removed.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _full(error, self._partial) from error
        finally:
            self._file.close()
        if self.offset < self._size_bytes:
            return False
        if self._digest.hexdigest() != self._sha256:
            self._partial.unlink()
            raise InvalidArtifactError(
                f"the bytes received for blob {self._sha256} have the SHA-256 "
                f"{self._digest.hexdigest()} and were discarded; send them again from the start",
                sha256=self._sha256,
                actual_sha256=self._digest.hexdigest(),
            )
        self._partial.replace(self._target)
        return True

    def abort(self) -> None:
        """Close after a failure; received bytes are kept, so that the transfer can be resumed."""
        with suppress(OSError):
            self._file.close()


def _full(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(f"no space left for uploads in {path.parent.parent.parent}", path=str(path))
    return error
