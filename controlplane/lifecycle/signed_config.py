"""Checks that the configuration of a model directory is the signed one."""

from controlplane.domain.manifest import Manifest
from controlplane.domain.model_directory import CONFIG_FILE
from controlplane.errors import InvalidArtifactError, UnverifiedVersionError
from controlplane.registry.registry import Registry
from controlplane.triton.model_directory import read_model_directory


def require_signed_config(registry: Registry, model: str, version: int, manifest: Manifest) -> None:
    """Compare the configuration in a manifest with ``config.pbtxt``, if versions must be signed. Blocks.

    A signature covers the files, and not the manifest, but a configuration can name code. So the configuration that is
    loaded must be that of the signed file.

    Raises:
        UnverifiedVersionError: They differ.
    """
    if manifest.config is None or not registry.signatures.required:
        return
    files = {file.path: file for file in manifest.files}
    try:
        content = registry.read_blob(files[CONFIG_FILE].sha256)
        same = read_model_directory(content, files.keys()).config == manifest.config
    except (KeyError, InvalidArtifactError):
        same = False
    if not same:
        raise UnverifiedVersionError(
            f"{model}:{version} is not deployed: the configuration in its manifest differs from the signed "
            f"{CONFIG_FILE}; publish the directory again and sign it",
            model=model,
            version=version,
        )
