"""Small contents that the control plane creates itself (samples, logs) and stores as blobs."""

import hashlib
from pathlib import Path

from controlplane.domain.manifest import FileEntry


def keep_bytes(path: Path, data: bytes) -> tuple[FileEntry, Path]:
    """Write bytes to ``path``, and return their entry and the path."""
    path.write_bytes(data)
    return FileEntry(path=path.name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)), path
