"""Uploads an artifact: digests, resumable transfers, constant memory whatever the size."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

import httpx

from controlplane.cli.output import size
from controlplane.cli.progress import Bar
from controlplane.client.errors import ClientError, NotRunningError
from controlplane.client.http import Client
from controlplane.client.models import Upload, UploadFile
from controlplane.domain.manifest import FileEntry
from controlplane.domain.model_directory import version_folders
from controlplane.errors import InvalidArtifactError, StoreUnavailableError
from controlplane.registry.artifact import scan

_CHUNK_BYTES = 1 << 20
_PARALLEL = 4
_ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 0.2
_PRESIGNED_SECONDS = 24 * 3600
_PART_SECONDS = 3600.0
_OTHER_BYTES = "invalid-artifact"
"""The problem's code if the received bytes have another digest than was announced."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of an artifact on this machine."""

    entry: FileEntry
    path: Path


def fingerprint(artifact: Path, bar: Bar, *, version_folder: int | None = None) -> tuple[LocalFile, ...]:
    """List an artifact's files with their digests; a single file is an artifact of one file.

    Args:
        artifact: The file or folder.
        bar: Shows the progress.
        version_folder: The only version folder of a model directory to include; None includes all files.

    Raises:
        InvalidArtifactError: The path does not exist, the folder has no files, or a link leads out of it.
    """
    bar.stage(f"hashing {artifact.name}", total=_total_bytes(artifact))
    with _workers(1) as (pool, stop):

        def hashed(count: int) -> None:
            stop.check()
            bar.advance(count)

        def selected(path: str) -> bool:
            return version_folder is None or version_folders([path]) in ([], [version_folder])

        found = pool.submit(scan, artifact, progress=hashed, select=selected).result()
    return tuple(LocalFile(entry, path) for entry, path in found)


class _Stop:
    """Tells worker threads that their results are no longer needed."""

    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        """Request the stop."""
        self._event.set()

    def check(self) -> None:
        """Raise in a worker if the stop was requested."""
        if self._event.is_set():
            raise InterruptedError("the upload was stopped")


@contextmanager
def _workers(count: int) -> Iterator[tuple[ThreadPoolExecutor, _Stop]]:
    """Provide threads that do not delay Ctrl-C: after an error, the block does not wait for them."""
    pool, stop = ThreadPoolExecutor(count), _Stop()
    try:
        yield pool, stop
    except BaseException:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _total_bytes(artifact: Path) -> int:
    """Return the length of the bar; files that are not part of the artifact make it slightly too long."""
    paths = artifact.rglob("*") if artifact.is_dir() else (artifact,)
    return sum(path.stat().st_size for path in paths if path.is_file())


class Journal:
    """A record of the upload of a set of files, so that a repeated push resumes an interrupted one."""

    def __init__(self, folder: Path, url: str, files: tuple[LocalFile, ...]) -> None:
        key = json.dumps([url, sorted((file.entry.path, file.entry.sha256) for file in files)])
        self._path = folder / "client" / "uploads" / hashlib.sha256(key.encode()).hexdigest()[:32]

    def read(self) -> str | None:
        """Return the upload's identifier, if there is one."""
        try:
            return self._path.read_text("utf-8").strip() or None
        except OSError:
            return None

    def write(self, upload_id: str) -> None:
        """Record the upload. If the folder cannot be written, the push cannot be resumed, but does not fail."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(upload_id, "utf-8")
        except OSError:
            return

    def clear(self) -> None:
        """Remove the record."""
        self._path.unlink(missing_ok=True)


def upload(client: Client, files: tuple[LocalFile, ...], bar: Bar, journal: Journal, *, direct: bool = False) -> Upload:
    """Upload the files' contents to the server; contents that it already has are not sent.

    Args:
        client: The control plane.
        files: The files.
        bar: Shows the progress.
        journal: Records the upload, so that an interrupted push can resume.
        direct: Write directly to the bucket instead of through the control plane.

    Raises:
        ClientError: The server refused.
        NotRunningError: The connection was lost and could not be restored.
    """
    announced = _announce(client, files, journal)
    missing = {file.sha256: file for file in announced.files if file.state == "missing"}
    total = sum(file.size_bytes for file in missing.values())
    done = sum(file.received_bytes for file in missing.values())
    present = len(announced.files) - len(missing)
    if not missing:
        bar.stage("nothing to upload: the server already has these files")
        return announced
    text = f"uploading {len(missing)} file{'s' * (len(missing) > 1)}, {size(total)}"
    text += f" ({size(done)} already uploaded)" if done else f" ({present} already uploaded)" if present else ""
    bar.stage(text, total=total, done=done)
    by_digest = {file.entry.sha256: file for file in files}
    with _workers(_PARALLEL) as (pool, stop):
        if direct:
            bar.stage(f"{text}, directly to the bucket", total=total)
            _send_direct(client, announced.id, by_digest, bar, pool, stop)
            return client.fetch(Upload, f"/v1/uploads/{announced.id}")
        sender = _Sender(client, announced.id, bar, stop)
        list(pool.map(lambda file: _unless_changed(by_digest[file.sha256], sender.send, file), missing.values()))
    return client.fetch(Upload, f"/v1/uploads/{announced.id}")


def _announce(client: Client, files: tuple[LocalFile, ...], journal: Journal) -> Upload:
    if (known := journal.read()) is not None:
        try:
            return client.fetch(Upload, f"/v1/uploads/{known}")
        except ClientError as error:
            if error.status != httpx.codes.NOT_FOUND:
                raise
    body = {"files": [file.entry.model_dump(mode="json") for file in files]}
    announced = client.read(Upload, client.post("/v1/uploads", body))
    journal.write(announced.id)
    return announced


def _unless_changed(local: LocalFile, send: Callable[[UploadFile, LocalFile], None], wanted: UploadFile) -> None:
    """Send a file. If the server received other bytes than announced, check whether the file has changed here.

    Raises:
        InvalidArtifactError: The file changed after its digest was computed.
        ClientError: The server refused.
    """
    try:
        send(wanted, local)
    except ClientError as error:
        if error.code == _OTHER_BYTES and not _is_unchanged(local):
            raise _changed(local) from error
        raise


def _is_unchanged(local: LocalFile) -> bool:
    try:
        with local.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == local.entry.sha256
    except OSError:
        return False


def _changed(local: LocalFile) -> InvalidArtifactError:
    return InvalidArtifactError(
        f"{local.path} changed during the push; push it again when no program writes to it", path=str(local.path)
    )


class _Sender:
    """Sends blobs, resuming after a lost connection."""

    def __init__(self, client: Client, upload_id: str, bar: Bar, stop: _Stop) -> None:
        self._client = client
        self._upload_id = upload_id
        self._bar = bar
        self._stop = stop

    def send(self, wanted: UploadFile, local: LocalFile) -> None:
        path = f"/v1/uploads/{self._upload_id}/blobs/{wanted.sha256}"
        offset = wanted.received_bytes
        for attempt in range(_ATTEMPTS):
            counter = _Counter(self._bar, self._stop)
            try:
                self._client.call(
                    "PUT",
                    path,
                    content=_read_from(local, offset, counter, wanted.size_bytes - offset),
                    headers={
                        "Upload-Offset": str(offset),
                        "Content-Type": "application/octet-stream",
                        "Content-Length": str(wanted.size_bytes - offset),
                    },
                    read_seconds=600,
                )
            except (NotRunningError, ClientError) as error:
                if attempt + 1 == _ATTEMPTS or not _worth_resuming(error):
                    raise
                # Immediately after a disconnect the server may still be processing the earlier data.
                time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
                at = self._offset(path)
                self._bar.advance(at - offset - counter.count)
                offset = at
            else:
                return

    def _offset(self, path: str) -> int:
        response = self._client.call("HEAD", path)
        return int(response.headers.get("Upload-Offset", "0"))


def _send_direct(
    client: Client,
    upload_id: str,
    by_digest: Mapping[str, LocalFile],
    bar: Bar,
    pool: ThreadPoolExecutor,
    stop: _Stop,
) -> None:
    """Write the missing contents with presigned URLs, part by part, and have each one accepted."""
    path = f"/v1/uploads/{upload_id}"
    blobs = client.post(f"{path}/presigned", {"expires_seconds": _PRESIGNED_SECONDS})["items"]
    with httpx.Client(timeout=httpx.Timeout(_PART_SECONDS, connect=30)) as http:

        def put(part: tuple[str, LocalFile, int, int]) -> None:
            url, source, start, length = part
            for attempt in range(_ATTEMPTS):
                counter = _Counter(bar, stop)
                content = _read_from(source, start, counter, length)
                try:
                    http.put(url, content=content, headers={"Content-Length": str(length)}).raise_for_status()
                except httpx.HTTPError as error:
                    bar.advance(-counter.count)
                    if attempt + 1 == _ATTEMPTS:
                        # Without the query, which contains the permission to write.
                        raise StoreUnavailableError(
                            f"failed to upload to the bucket at {url.partition('?')[0]}: {type(error).__name__}; "
                            "omit --direct to upload through the control plane"
                        ) from error
                    time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
                else:
                    return

        for blob in blobs:
            local, step = by_digest[blob["sha256"]], blob["part_size_bytes"]
            whole = local.entry.size_bytes
            parts = [(url, local, at * step, min(step, whole - at * step)) for at, url in enumerate(blob["urls"])]
            list(pool.map(put, parts))
            # The control plane reads it back and compares it, hence the long timeout.
            try:
                client.post(
                    f"{path}/blobs/{blob['sha256']}/complete",
                    {"multipart_id": blob["multipart_id"]},
                    read_seconds=_PART_SECONDS,
                )
            except ClientError as error:
                if error.code == _OTHER_BYTES and not _is_unchanged(local):
                    raise _changed(local) from error
                raise


def _worth_resuming(error: NotRunningError | ClientError) -> bool:
    # 409: the server has another number of bytes than we assumed.
    return isinstance(error, NotRunningError) or error.status in {408, 409, 500, 502, 503, 504}


class _Counter:
    """Counts the bytes that one attempt sent."""

    def __init__(self, bar: Bar, stop: _Stop) -> None:
        self._bar = bar
        self._stop = stop
        self._lock = Lock()
        self.count = 0

    def add(self, count: int) -> None:
        self._stop.check()
        with self._lock:
            self.count += count
        self._bar.advance(count)


def _read_from(local: LocalFile, offset: int, counter: _Counter, length: int) -> Iterator[bytes]:
    """Yield exactly ``length`` bytes of a file.

    Raises:
        InvalidArtifactError: The file has become shorter or was removed.
    """
    try:
        with local.path.open("rb") as file:
            file.seek(offset)
            left = length
            while left:
                chunk = file.read(min(_CHUNK_BYTES, left))
                if not chunk:
                    raise _changed(local)
                yield chunk
                left -= len(chunk)
                counter.add(len(chunk))
    except FileNotFoundError as error:
        raise _changed(local) from error
