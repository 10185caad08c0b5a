"""The key file in the data folder, with which commands on the same machine prove that they can read that folder.

A control plane writes it when it accepts requests and removes it when it stops. Only that process accepts the key, and
the key becomes invalid when the process ends, so it is never in the store and never has to be revoked.
"""

import os
from pathlib import Path

KEY_FILE = "up.key"


def write_local_key(data_dir: Path, token: str) -> None:
    """Write the key to a file that other users can never read, not even during the write."""
    path = data_dir / KEY_FILE
    temporary = path.with_name(f"{KEY_FILE}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token)
    temporary.replace(path)


def read_local_key(data_dir: Path) -> str | None:
    """Return the key; None if the file does not exist or cannot be read."""
    try:
        return (data_dir / KEY_FILE).read_text("ascii").strip() or None
    except OSError:
        return None


def remove_local_key(data_dir: Path) -> None:
    """Remove the key file."""
    (data_dir / KEY_FILE).unlink(missing_ok=True)
