"""Makes the folders that the settings name."""

from pathlib import Path

from controlplane.errors import InvalidInputError


def make_private(path: Path) -> None:
    """Make a folder that no other user of the machine may enter, whatever the umask; leave one that exists as it is.

    Raises:
        OSError: It cannot be made.
    """
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def make_folder(path: Path, what: str, *, private: bool = False) -> None:
    """Make a folder that the settings name.

    Args:
        path: The folder.
        what: What it is for, as an error says it.
        private: Whether other users must not enter it, if it is new.

    Raises:
        InvalidInputError: It cannot be made.
    """
    try:
        make_private(path) if private else path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{what} {path} cannot be made: {error.strerror}", path=str(path)) from error
