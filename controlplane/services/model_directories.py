"""Publication of model directories: what is learnt from a ``config.pbtxt`` and the files of one version."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from controlplane.domain.access import Principal, may_bring_code
from controlplane.domain.manifest import FileEntry, Format
from controlplane.domain.model_directory import (
    CONFIG_FILE,
    STORED_FOLDER,
    is_model_directory,
    stored_path,
    version_folders,
)
from controlplane.domain.samples import Sample, check_samples
from controlplane.domain.signature import DYNAMIC, Signature
from controlplane.errors import ForbiddenError, InvalidArtifactError, InvalidInputError
from controlplane.triton.code_settings import refuse_backend_libraries
from controlplane.triton.model_directory import MODEL_FILES, ModelDirectory, read_model_directory

BACKEND = "onnxruntime"
"""The backend whose model files are read, and run to record golden samples, when a directory is published."""


def as_stored(files: Sequence[FileEntry], declared: Format | None) -> tuple[FileEntry, ...] | None:
    """Return a model directory's files with the paths that a version has; None if the files are something else.

    Args:
        files: The files.
        declared: The format that the publisher declares.

    Raises:
        InvalidArtifactError: The directory has several version folders, or is declared as one and is none; or another
            artifact contains a library that Triton would load in place of a backend.
    """
    paths = [file.path for file in files]
    if declared is not Format.TRITON and (declared is not None or not is_model_directory(paths)):
        refuse_backend_libraries(paths)
        return None
    folders = version_folders(paths)
    if len(folders) > 1 or CONFIG_FILE not in paths:
        if CONFIG_FILE in paths:
            raise InvalidArtifactError(
                f"the model directory has the version folders {', '.join(map(str, folders))}; a version is one of "
                f"them: choose it with `tritonctl push NAME DIR --version {folders[-1]}`, or import all of them with "
                "`tritonctl import`"
            )
        raise InvalidArtifactError(
            f"a model directory has {CONFIG_FILE} and a version folder, for example 1/model.onnx; found: "
            f"{', '.join(sorted(paths)[:5])}"
        )
    return (
        tuple(file.model_copy(update={"path": stored_path(file.path, folders[0])}) for file in files)
        if folders
        else tuple(files)
    )


async def read_directory(artifact: Path, files: Sequence[FileEntry], asker: Principal | None) -> ModelDirectory:
    """Read a model directory, and check whether the caller may publish it.

    Args:
        artifact: The folder with the files, under the paths that a version has.
        files: The files.
        asker: The caller; None if API keys are not in use.

    Raises:
        InvalidArtifactError: The configuration is not valid, or files that it names are missing.
        ForbiddenError: The directory contains code, and the caller's key does not have the scope `code`.
    """
    content = await asyncio.to_thread((artifact / CONFIG_FILE).read_bytes)
    directory = await asyncio.to_thread(read_model_directory, content, {file.path for file in files})
    if directory.code and not may_bring_code(asker):
        raise ForbiddenError(
            f"{directory.code}: publishing it needs the scope 'code'. Use a key that has this scope "
            "(`tritonctl keys create NAME --scope code`)",
            needed="code",
        )
    return directory


def recordable(artifact: Path, directory: ModelDirectory) -> Path | None:
    """Return the ONNX model, a file or a folder, which is read here and run for golden samples; None for others."""
    if directory.backend != BACKEND:
        return None
    file = artifact / STORED_FOLDER / str(directory.config.get("default_model_filename") or MODEL_FILES[BACKEND])
    return file if file.exists() else None


def declared_samples(given: Sequence[Sample], signature: Signature | None) -> tuple[Sample, ...]:
    """Return samples whose arrays are assigned to inputs and outputs by the names in the signature."""
    if signature is None:
        return tuple(given)
    outputs = {spec.name for spec in signature.outputs} - {spec.name for spec in signature.inputs}
    return tuple(
        sample
        if sample.outputs
        else Sample(
            {name: array for name, array in sample.inputs.items() if name not in outputs},
            {name: array for name, array in sample.inputs.items() if name in outputs},
        )
        for sample in given
    )


def require_answers(samples: Sequence[Sample], signature: Signature | None) -> None:
    """Check that samples contain the recorded outputs, for a model that cannot be run at its publication.

    Raises:
        InvalidInputError: Outputs are missing, or do not match the signature.
    """
    if signature is None:
        raise InvalidInputError(
            f"samples were given, but {CONFIG_FILE} declares no inputs or no outputs to compare them with"
        )
    if any(not sample.outputs for sample in samples):
        raise InvalidInputError(
            "the samples have no outputs, and this model is not run when it is published: add one array for each "
            f"output ({', '.join(spec.name for spec in signature.outputs)}) to the .npz, or omit --samples"
        )
    check_samples(tuple(samples), signature)


def fitting_samples(recorded: Sequence[Sample], signature: Signature) -> tuple[tuple[Sample, ...], str]:
    """Return the samples that were recorded from a model file and fit the author's configuration, and why not all do.

    A configuration may have fewer outputs than the file, other shapes (reshape), or inputs that Triton sets itself
    (sequence batching).
    """
    names = {spec.name for spec in signature.outputs}
    kept = tuple(
        Sample(sample.inputs, {name: array for name, array in sample.outputs.items() if name in names})
        for sample in recorded
    )
    try:
        check_samples(kept, signature)
    except InvalidInputError as error:
        return (), f"no golden samples: the model file does not match {CONFIG_FILE}: {error.message}"
    return kept, ""


def with_batch(signature: Signature | None, directory: ModelDirectory) -> Signature | None:
    """Return the signature of a model file with the batching that the author's configuration states.

    Raises:
        InvalidArtifactError: The configuration states a batch dimension that a tensor of the file does not have.
    """
    size = int(directory.config.get("max_batch_size", 0))
    for spec in (*signature.inputs, *signature.outputs) if signature is not None and size else ():
        if spec.shape[:1] != (DYNAMIC,):
            raise InvalidArtifactError(
                f"max_batch_size is {size} in {CONFIG_FILE}, but the first dimension of {spec} in the model file is "
                "not dynamic; set max_batch_size to 0, or export the model with a dynamic first dimension"
            )
    return signature.model_copy(update={"batched": size > 0}) if signature is not None else None
