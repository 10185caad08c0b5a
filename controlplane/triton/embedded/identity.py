"""Identity of an embedded server: a token stored in its data folder, and a lock on its model repository.

Every embedded server is named `embedded`, because only its own instance connects to it. Its id distinguishes it from
the embedded servers of other instances on the same store.
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
    """Return the id of the embedded server whose files are in a folder: name and token, `embedded-1f3a90c2`.

    The token is created once and kept. A copy of the folder is a different server: the file contains its own inode
    number, and if the number does not match, a new token is created.
    """
    path = folder / IDENTITY_FILE
    token = _kept(path)
    if token is None:
        token = secrets.token_hex(_TOKEN_BYTES)
        _keep(path, token)
    return f"{name}-{token}"


@contextmanager
def repository_lock(root: Path) -> Iterator[None]:
    """Lock a model repository for one embedded server; the kernel releases the lock when the process ends.

    Raises:
        ConflictError: Another process holds the lock.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another control plane or agent uses the model repository {root}; two servers cannot "
                "share one: set triton.repository or --data-dir to another folder",
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
