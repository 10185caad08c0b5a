"""Detection of what a file is, from its content and without running any code that it contains."""

import json
import struct
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from controlplane.domain.manifest import Format
from controlplane.domain.placeholders import HEAD_BYTES, lfs_pointer, web_page
from controlplane.domain.signature import DYNAMIC, DataType, Signature, TensorSpec
from controlplane.errors import ForbiddenError, InvalidArtifactError
from converters.archives import list_archive
from converters.booster_files import inspect_booster
from converters.jobs import Inspection
from converters.onnx_artifact import inspect_onnx
from converters.other_formats import refuse_keras_archive, refuse_other_folder, refuse_other_format
from converters.pickles import refuse_untrusted_pickle
from converters.torch_artifact import WEIGHTS_HINT, inspect_torch_archive, is_skops, skops_attributes
from converters.transformers_folder import read_transformers_folder

MAX_SAFETENSORS_HEADER_BYTES = 100 * 1024**2
MAX_FILES = 100_000
_TRANSFORMERS_HINT = "a transformers model is served as ONNX; convert it: tritonctl convert NAME --to onnx"
_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MODEL_SUFFIXES = (
    ".onnx",
    ".pt",
    ".pth",
    ".pt2",
    ".ts",
    ".jit",
    ".skops",
    ".safetensors",
    ".pkl",
    ".pickle",
    ".joblib",
    ".ubj",
)


def inspect_artifact(
    path: Path,
    *,
    format: Format | None = None,  # noqa: A002 - the name in the API
    signature: Signature | None = None,
    batched: bool | None = None,
    trust: bool = False,
    code: bool = True,
) -> Inspection:
    """Detect what an artifact is, and check that it is complete and safe to read.

    This function is cheap: it reads headers and directories, but no weights. A hostile file may still crash a parser or
    exhaust memory, so services run this function in a worker (`converters.jobs.InspectJob`).

    Args:
        path: A file or a folder.
        format: The format that the publisher declares; content of another format is an error. It has no other effect.
        signature: The signature that the publisher declares. It is checked against the one that the file declares, if
            any, and then takes precedence: it may declare a batch dimension that the file leaves open.
        batched: Whether the first dimension of every tensor is the batch, if the file declares a signature and none is
            given; None keeps what the file declares.
        trust: Accept artifacts that run code when they are read: pickles, and torch.export programs that contain them.
        code: Accept TorchScript, a program that runs when it is loaded and when it answers requests.

    Raises:
        InvalidArtifactError: The format is unknown, or the artifact is truncated, unsafe, or not what ``format`` or
            ``signature`` declare.
        UntrustedArtifactError: Reading the artifact would run its code, and ``trust`` is false.
        ForbiddenError: The artifact is TorchScript, and ``code`` is false.
    """
    folder = read_transformers_folder(path) if format in (None, Format.TRANSFORMERS) else None
    if folder is not None:
        _files(path)
        return Inspection(Format.TRANSFORMERS, None, folder.attributes, "config.json", (_TRANSFORMERS_HINT,))
    main, root = _main_file(path)
    read = _read(main, root, trust=trust)
    found, facts, attributes, hints = read.format, read.signature, read.attributes, read.hints
    if found is Format.TORCHSCRIPT and not code:
        raise ForbiddenError(
            f"{main.name} is TorchScript, a program that can read and write files where it runs: publishing or running "
            "it needs the scope 'code'. Export the model to ONNX, or use a key that has this scope (`tritonctl keys "
            "create NAME --scope code`)",
            needed="code",
        )
    if format is not None and format is not found:
        raise InvalidArtifactError(f"{main.name} is declared as {format.value}, but its content is {found.value}")
    if found.file_name is not None and main.parent != root:
        raise InvalidArtifactError(
            f"the model file {main.relative_to(root).as_posix()!r} is in a subfolder, but Triton needs it at the "
            "top; give that folder as the artifact"
        )
    if (
        found.file_name is not None
        and main.name != found.file_name
        and (root / found.file_name).exists()
        and path.is_dir()
    ):
        raise InvalidArtifactError(f"both {main.name!r} and {found.file_name!r} are in the folder; keep only one model")
    if signature is not None:
        if facts is not None:
            _check_given(signature, facts, main.name)
        facts, hints = signature, ()
    elif facts is not None and batched is not None:
        facts = _stated_batch(facts, batched=batched, name=main.name)
    relative = main.relative_to(root).as_posix()
    return Inspection(found, facts, attributes, relative, hints, read.inputs, read.unservable)


class _Read(NamedTuple):
    """What a file declares about itself; see `Inspection`."""

    format: Format
    signature: Signature | None
    attributes: dict[str, JsonValue]
    hints: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] | None = None
    unservable: str | None = None


def _read(main: Path, root: Path, *, trust: bool) -> _Read:
    head = _head(main)
    if not head:
        raise InvalidArtifactError(f"{main.name} is empty")
    refuse_other_format(main, head)
    if (reason := lfs_pointer(main.name, head) or web_page(main.name, head)) is not None:
        raise InvalidArtifactError(reason)
    if head.startswith(_ZIP):
        listing = list_archive(main)
        if is_skops(listing):
            return _Read(Format.SKLEARN, None, skops_attributes(listing))
        refuse_keras_archive(listing)
        facts = inspect_torch_archive(listing, trust=trust)
        return _Read(facts.format, facts.signature, facts.attributes, facts.hints)
    if head.startswith(_LEGACY_TORCH):
        return _Read(Format.PYTORCH, None, {"weights": "legacy torch.save"}, (WEIGHTS_HINT,))
    if head[:1] == b"\x80" and len(head) > 1 and head[1] in range(2, 6):
        refuse_untrusted_pickle(main.name, trust=trust)
        return _Read(Format.SKLEARN, None, {"container": "pickle"})
    if (attributes := _safetensors(main, head)) is not None:
        return _Read(Format.PYTORCH, None, attributes, (WEIGHTS_HINT,))
    if (booster := inspect_booster(main, head)) is not None:
        return _Read(booster[0], None, booster[1])
    # An ONNX file is a protobuf message without a magic number; all exporters write ir_version, field 1, first.
    if main.suffix.lower() == ".onnx" or head[:1] == b"\x08":
        onnx = inspect_onnx(main, root)
        found = onnx.declared
        return _Read(Format.ONNX, found.signature, onnx.attributes, found.hints, found.inputs, found.unservable)
    raise InvalidArtifactError(
        f"the format of {main.name} is unknown; supported formats are ONNX, TorchScript, torch.export (.pt2), "
        "safetensors, a PyTorch state dict, skops, XGBoost (.json, .ubj) and LightGBM (.txt)"
    )


def _main_file(path: Path) -> tuple[Path, Path]:
    if path.is_file():
        return path, path.parent
    if not path.is_dir():
        raise InvalidArtifactError(f"{path} is neither a file nor a folder")
    files = _files(path)
    refuse_other_folder(path)
    named = [file for file in files if file.parent == path and file.name in {"model.onnx", "model.pt"}]
    models = named or [file for file in files if file.suffix.lower() in _MODEL_SUFFIXES]
    models = models or (files if len(files) == 1 else [])
    if len(models) != 1:
        names = ", ".join(file.relative_to(path).as_posix() for file in models[:5]) or "none"
        raise InvalidArtifactError(f"a folder must contain exactly one model file; found: {names}")
    return models[0], path


def _files(path: Path) -> list[Path]:
    """Return the files of a folder; refuse links that lead out of it."""
    root, files = path.resolve(), []
    for file in sorted(path.rglob("*")):
        if file.is_symlink() and not file.resolve().is_relative_to(root):
            raise InvalidArtifactError(
                f"{file.relative_to(path).as_posix()!r} is a link that points outside the artifact"
            )
        if file.is_file():
            files.append(file)
        if len(files) > MAX_FILES:
            raise InvalidArtifactError(f"the artifact has more than {MAX_FILES} files")
    return files


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _safetensors(path: Path, head: bytes) -> dict[str, JsonValue] | None:
    """Return the facts of a safetensors file; None if the file is not one.

    The layout (https://huggingface.co/docs/safetensors) is the length of the header in 8 bytes (little-endian), a JSON
    header with the offsets of each tensor, and the data.
    """
    claimed = path.suffix.lower() == ".safetensors"
    if not claimed and (len(head) < 9 or head[8:9] != b"{"):
        return None
    size = path.stat().st_size
    broken = InvalidArtifactError(f"{path.name} is not a safetensors file, or it is truncated")
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    if not 2 <= length <= min(size - 8, MAX_SAFETENSORS_HEADER_BYTES):
        if claimed:
            raise broken
        return None
    with path.open("rb") as file:
        file.seek(8)
        raw = file.read(length)
    try:
        header = json.loads(raw)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        parameters = 0
        for entry in tensors.values():
            count = 1
            for dimension in entry["shape"]:
                count *= int(dimension)
            parameters += count
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise broken from error
    if end + 8 + length != size:
        raise broken
    return {"weights": "safetensors", "tensors": len(tensors), "parameters": parameters}


def _stated_batch(read: Signature, *, batched: bool, name: str) -> Signature:
    """Return the signature of a file with the publisher's statement about the batch applied."""
    for spec in (*read.inputs, *read.outputs) if batched else ():
        if spec.shape[:1] != (DYNAMIC,):
            what = f"is fixed at {spec.shape[0]}" if spec.shape else "is missing"
            raise InvalidArtifactError(
                f"{name} is declared as batched, but the first dimension of {spec} {what}; export it again with a "
                "dynamic first dimension, or omit batched"
            )
    return read.model_copy(update={"batched": batched})


def _check_given(given: Signature, read: Signature, name: str) -> None:
    """Reject a given signature that the file contradicts."""
    for kind, ours, theirs in (("inputs", given.inputs, read.inputs), ("outputs", given.outputs, read.outputs)):
        by_name = {spec.name: spec for spec in theirs}
        if {spec.name for spec in ours} != set(by_name):
            raise InvalidArtifactError(
                f"the given signature has the {kind} {sorted(spec.name for spec in ours)}, but {name} has "
                f"{sorted(by_name)}"
            )
        for spec in ours:
            have = by_name[spec.name]
            # The outputs that a file declares may be wrong; running the model decides.
            fits = kind == "outputs" or (
                len(spec.shape) == len(have.shape)
                and all(
                    DYNAMIC in (mine, theirs) or mine == theirs
                    for mine, theirs in zip(spec.shape, have.shape, strict=True)
                )
            )
            bf16 = {spec.dtype, have.dtype} == {DataType.BF16, DataType.FP32}
            if not fits or (spec.dtype is not have.dtype and not bf16):
                raise InvalidArtifactError(f"the given signature has {spec}, but {name} has {have}")
            if given.batched and have.shape and have.shape[0] not in (DYNAMIC,):
                raise InvalidArtifactError(
                    f"in the given signature {spec.name!r} is batched, but in {name} its first dimension is fixed "
                    f"at {have.shape[0]}"
                )
