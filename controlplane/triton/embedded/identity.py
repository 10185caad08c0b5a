"""Which embedded server this is: a token that stays with its data folder, and a lock on its model repository.

Every embedded server is named `embedded`, since its own instance is the only one that reaches it. Its id tells it from
those of other instances on the same store.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controlplane.errors import ConflictError

IDENTITY_FILE = "identity.json"
_TOKEN_BYTES = 4


def server_id(name: str, folder: Path) -> str:
    """Return the id of the embedded server whose own files are in a folder: its name and a token, `embedded-1f3a90c2`.

    The token is made once and kept. A copy of the folder is another server: the file remembers its own inode, and where
    that is not the one it is read from, a new token is made.
    """
    path = folder / IDENTITY_FILE
    token = _kept(path)
    if token is None:
        token = secrets.token_hex(_TOKEN_BYTES)
        _keep(path, token)
    return f"{name}-{token}"


@contextmanager
def repository_lock(root: Path) -> Iterator[None]:
    """Hold a model repository for one embedded server; the kernel releases it when the process ends.

    Raises:
        ConflictError: Another process has it.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another control plane runs an embedded Triton on the model repository {root}; two servers cannot "
                "share one: give another by the setting triton.repository, or another --data-dir",
                path=str(root),
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)


def _kept(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            document = json.load(file)
            token, inode = str(document["token"]), int(document["inode"])
            return token if inode == os.fstat(file.fileno()).st_ino else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, token: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"token": token, "inode": os.fstat(file.fileno()).st_ino}, file)
    temporary.replace(path)
