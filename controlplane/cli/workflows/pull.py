"""Downloads a version's files: resumable, verified, in constant memory."""

import hashlib
import os
import time
from pathlib import Path

import httpx

from controlplane.cli.progress import Bar
from controlplane.client.errors import NotRunningError
from controlplane.client.http import Client
from controlplane.domain.manifest import FileEntry
from controlplane.errors import DigestMismatchError

_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 0.2


def download(client: Client, url_path: str, entry: FileEntry, target: Path, bar: Bar) -> bool:
    """Download one file, resuming from the part that an earlier run left. Return whether anything was fetched.

    The file is renamed to its name only after its digest is verified, so a file with that name is complete.

    Raises:
        DigestMismatchError: The content is not what was published; it is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and target.stat().st_size == entry.size_bytes and _digest(target) == entry.sha256:
        bar.advance(entry.size_bytes)
        return False
    partial = target.with_name(f"{target.name}.{entry.sha256[:12]}.incomplete")
    for attempt in range(_ATTEMPTS):
        try:
            _fetch(client, url_path, entry, partial, bar)
            break
        except NotRunningError:
            if attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
    if (actual := _digest(partial)) != entry.sha256:
        partial.unlink()
        raise DigestMismatchError(
            f"{entry.path}: the downloaded bytes have the SHA-256 {actual}, expected {entry.sha256}; the download was "
            "deleted. Run the command again; if the error persists, the blob in the store is damaged",
            path=entry.path,
            sha256=entry.sha256,
            actual_sha256=actual,
        )
    partial.replace(target)
    return True


def _fetch(client: Client, url_path: str, entry: FileEntry, partial: Path, bar: Bar) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if have > entry.size_bytes:
        partial.unlink()
        have = 0
    bar.advance(have)
    if have == entry.size_bytes and partial.exists():
        return
    headers = {"Range": f"bytes={have}-", "If-Range": f'"{entry.sha256}"'} if have else {}
    with client.stream(url_path, headers=headers) as response, partial.open("ab") as file:
        if have and response.status_code != httpx.codes.PARTIAL_CONTENT:
            file.truncate(0)
            bar.advance(-have)
        for chunk in response.iter_raw(_CHUNK_BYTES):
            file.write(chunk)
            bar.advance(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
