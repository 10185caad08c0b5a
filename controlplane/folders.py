"""Creates the folders that the settings name."""

from pathlib import Path

from controlplane.errors import InvalidInputError


def make_private(path: Path) -> None:
    """Create a folder that no other user of the machine may enter, whatever the umask; keep an existing one as it is.

    Raises:
        OSError: It cannot be created.
    """
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def make_folder(path: Path, what: str, *, private: bool = False) -> None:
    """Create a folder that the settings name.

    Args:
        path: The folder.
        what: The purpose of the folder, for error messages.
        private: Whether a new folder must be inaccessible to other users.

    Raises:
        InvalidInputError: It cannot be created.
    """
    try:
        make_private(path) if private else path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"cannot create {what} {path}: {error.strerror}", path=str(path)) from error
