"""Where the files of a version belong in its folder of Triton's model repository."""

from collections.abc import Mapping

from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.domain.model_directory import version_files
from controlplane.errors import InvalidArtifactError
from controlplane.triton.code_settings import refuse_backend_libraries


def layout(manifest: Manifest) -> dict[str, FileEntry]:
    """Return the file for each path in a version's folder; the model file gets the name that Triton's backend expects.

    External data of an ONNX model is stored beside it and keeps its name. The files of a model directory keep theirs.

    Raises:
        InvalidArtifactError: Triton cannot serve the format, the model file cannot be identified, or a file would
            replace a backend's library.
    """
    if manifest.format is Format.TRITON:
        return version_files(manifest)
    refuse_backend_libraries(file.path for file in manifest.files)
    wanted = manifest.format.file_name
    if wanted is None:
        raise InvalidArtifactError(f"Triton cannot run the format {manifest.format}; convert it to onnx or torchscript")
    files = {file.path: file for file in manifest.files}
    main = wanted if wanted in files else _main_file(files, wanted, manifest.attributes.get("main_file"))
    folder = main.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    placed = {path.removeprefix(prefix): file for path, file in files.items() if path not in (main, wanted)}
    placed[wanted] = files[main]
    return placed


def _main_file(files: Mapping[str, FileEntry], wanted: str, named: object) -> str:
    if isinstance(named, str) and named in files:
        return named
    suffixes = (".onnx",) if wanted.endswith(".onnx") else (".pt", ".pth", ".jit", ".ts", ".torchscript")
    candidates = [path for path in files if path.endswith(suffixes)] or (list(files) if len(files) == 1 else [])
    if len(candidates) != 1:
        raise InvalidArtifactError(f"cannot identify the model among these files: {', '.join(files)}; name it {wanted}")
    return candidates[0]
