"""Small contents that the control plane makes itself (samples, logs), on their way to being blobs."""

import hashlib
from pathlib import Path

from controlplane.domain.manifest import FileEntry


def keep_bytes(path: Path, data: bytes) -> tuple[FileEntry, Path]:
    """Write bytes to ``path``; returns their entry and the path."""
    path.write_bytes(data)
    return FileEntry(path=path.name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)), path
