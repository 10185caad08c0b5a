"""Model directories as Triton reads them: a configuration, version folders, and files beside them. Pure.

A version of the format ``triton`` has the paths of such a directory. The folder of the version's own files is stored as
`STORED_FOLDER`, whatever its number was, so that equal directories have equal manifests, and a download is a directory
that Triton reads. In a model repository the folder has the version's number.
"""

import re
from collections.abc import Iterable

from controlplane.domain.manifest import FileEntry, Manifest

CONFIG_FILE = "config.pbtxt"
STORED_FOLDER = "1"
_PREFIX = f"{STORED_FOLDER}/"
_FOLDER = re.compile(r"([1-9][0-9]*)/.")


def version_folders(paths: Iterable[str]) -> list[int]:
    """Return the numbers of the version folders, by Triton's rule: digits without a leading zero."""
    return sorted({int(match[1]) for path in paths if (match := _FOLDER.match(path))})


def is_model_directory(paths: Iterable[str]) -> bool:
    """Return whether these are the files of a model directory: ``config.pbtxt`` and at least one version folder.

    The version folder of an ensemble is empty, so its configuration may be its only file.
    """
    paths = list(paths)
    return CONFIG_FILE in paths and (bool(version_folders(paths)) or paths == [CONFIG_FILE])


def stored_path(path: str, folder: int) -> str:
    """Return the path under which a file is stored, given the number of the version's folder."""
    prefix = f"{folder}/"
    return _PREFIX + path.removeprefix(prefix) if path.startswith(prefix) else path


def version_files(manifest: Manifest) -> dict[str, FileEntry]:
    """Return the files of the version's folder, by their path in it."""
    return {file.path.removeprefix(_PREFIX): file for file in manifest.files if file.path.startswith(_PREFIX)}


def shared_files(manifest: Manifest) -> dict[str, FileEntry]:
    """Return the files beside the version's folder (labels, environments, warm-up data), by path.

    The configuration is not one of them, because the control plane writes its own. Formats other than ``triton`` have
    no such files.
    """
    if manifest.config is None:
        return {}
    return {
        file.path: file for file in manifest.files if file.path != CONFIG_FILE and not file.path.startswith(_PREFIX)
    }
