"""The key file in the data folder: how commands on the same machine prove that they may read that folder.

A control plane writes it when it answers and removes it at the end. The key in it is known to that process alone and
dies with it, so it is never in the bucket and nobody has to revoke it.
"""

import os
from pathlib import Path

KEY_FILE = "up.key"


def write_local_key(data_dir: Path, token: str) -> None:
    """Write the key for its owner's eyes alone; never for a moment for others'."""
    path = data_dir / KEY_FILE
    temporary = path.with_name(f"{KEY_FILE}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token)
    temporary.replace(path)


def read_local_key(data_dir: Path) -> str | None:
    """Return the key; None where there is none, or it is not ours to read."""
    try:
        return (data_dir / KEY_FILE).read_text("ascii").strip() or None
    except OSError:
        return None


def remove_local_key(data_dir: Path) -> None:
    """Remove the file."""
    (data_dir / KEY_FILE).unlink(missing_ok=True)
