"""Reads a model directory's ``config.pbtxt``: the author's configuration, its signature, and the files it names."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format
from pydantic import ValidationError

from controlplane.domain.model_directory import CONFIG_FILE, STORED_FOLDER, version_folders
from controlplane.domain.pipelines import ENSEMBLE, is_ensemble, members_of, steps_of
from controlplane.domain.signature import DYNAMIC, DataType, Signature, TensorSpec
from controlplane.domain.validation import invalid_field
from controlplane.errors import InvalidArtifactError
from controlplane.triton.code_settings import author_code
from controlplane.triton.config_json import RESERVED_PARAMETERS, ModelConfig, message_to_json

MAX_CONFIG_BYTES = 1 << 20
ENVIRONMENT_PARAMETER = "EXECUTION_ENV_PATH"
_MODEL_FOLDER = "$$TRITON_MODEL_DIRECTORY/"
AOTINDUCTOR = "torch_aoti"
"""Platform of programs that AOTInductor compiled."""
_PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    AOTINDUCTOR: "pytorch",
    "tensorrt_plan": "tensorrt",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
"""Backend by platform, the older way to name it (Triton's backend_config and its documentation)."""

MODEL_FILES: Mapping[str, str] = {
    "onnxruntime": "model.onnx",
    "pytorch": "model.pt",
    "python": "model.py",
    "tensorrt": "model.plan",
    "openvino": "model.xml",
    "dali": "model.dali",
    "vllm": "model.json",
}
"""The file in a version folder that a backend loads if the configuration does not name one; see `default_file`."""

_PLATFORM_FILES: Mapping[str, str] = {
    AOTINDUCTOR: "model.pt2",
    "tensorflow_graphdef": "model.graphdef",
    "tensorflow_savedmodel": "model.savedmodel",
}


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """The content of a model directory's configuration.

    Attributes:
        config: The author's configuration in Triton's JSON form, without what the control plane decides (name, version
            policy, its own parameters). It names the backend, unless it is an ensemble's.
        backend: The backend; ``ensemble`` for an ensemble, which Triton itself runs.
        members: The models that an ensemble's steps, or the parameter ``depends_on``, name.
        signature: Inputs and outputs as clients send them; None if the configuration does not declare them.
        code: Why publishing it needs the scope ``code``; empty if it contains data alone.
        notes: What a publisher must know, one sentence each.
    """

    config: dict[str, Any]
    backend: str
    signature: Signature | None
    code: str
    notes: tuple[str, ...]
    members: tuple[str, ...] = ()

    @property
    def decoupled(self) -> bool:
        """Whether a request may get any number of responses."""
        return bool(self.config.get("model_transaction_policy", {}).get("decoupled"))


def read_model_directory(content: bytes, paths: Collection[str]) -> ModelDirectory:
    """Read a configuration and check that the directory has all files that it names.

    Args:
        content: The content of ``config.pbtxt``.
        paths: The directory's files, with ``/``; the version's files are in `STORED_FOLDER`.

    Raises:
        InvalidArtifactError: The configuration is not valid, names no backend or a missing file, its tensors contradict
            each other, or there is no version folder.
    """
    config = _parse(content)
    notes = []
    if is_ensemble(config):
        backend = ENSEMBLE
        notes += _check_ensemble(config)
    else:
        if not any(path.startswith(f"{STORED_FOLDER}/") for path in paths):
            raise InvalidArtifactError(
                f"a model directory has {CONFIG_FILE} and a version folder, for example 1/model.onnx; only an ensemble "
                "needs no files in its version folder"
            )
        backend = config.setdefault("backend", "") or _backend(config, paths)
        config["backend"] = backend
    if config.pop("version_policy", None):
        notes.append(f"version_policy in {CONFIG_FILE} has no effect: a deployment names its version")
    config.pop("name", None)
    parameters = config.get("parameters", {})
    for name in [name for name in parameters if name.startswith(RESERVED_PARAMETERS)]:
        del parameters[name]  # written by a control plane into its own model repository
    members = members_of(config)
    if backend != ENSEMBLE:
        _check_model_file(config, backend, paths)
    for field, path in _named_files(config):
        _check_named(field, path, paths)
    if environment := outside_environment(config):
        notes.append(f"{ENVIRONMENT_PARAMETER} is {environment!r}, which every server that runs it must have")
    return ModelDirectory(
        config, backend, _signature(config), author_code(config, backend, paths), tuple(notes), members
    )


def _check_ensemble(config: dict[str, Any]) -> list[str]:
    """Check an ensemble's configuration as Triton does when it reads it; return what a publisher must know."""
    if config.pop("backend", ""):
        raise InvalidArtifactError(f"{CONFIG_FILE} describes an ensemble and names a backend; remove the backend")
    if config.setdefault("platform", ENSEMBLE) != ENSEMBLE:
        raise InvalidArtifactError(
            f"{CONFIG_FILE} has ensemble_scheduling and the platform {config['platform']!r}; Triton requires the "
            f"platform {ENSEMBLE!r}"
        )
    if "instance_group" in config:
        raise InvalidArtifactError(f"{CONFIG_FILE} describes an ensemble and has an instance_group; remove it")
    if any(step.get("model_namespace") for step in config.get("ensemble_scheduling", {}).get("step", ())):
        raise InvalidArtifactError(f"a step in {CONFIG_FILE} has a model_namespace, which is not supported; remove it")
    for step in steps_of(config):
        if not step.model or not step.inputs or not step.outputs:
            raise InvalidArtifactError(
                f"step {step.model!r} of the ensemble in {CONFIG_FILE} needs a model_name, an input_map and an "
                "output_map"
            )
    available = {str(item.get("name")) for item in config.get("input", ())}
    available |= {tensor for step in steps_of(config) for tensor in step.outputs.values()}
    for step in steps_of(config):
        if unknown := sorted(set(step.inputs.values()) - available):
            raise InvalidArtifactError(
                f"step {step.model!r} of the ensemble in {CONFIG_FILE} takes the tensor {unknown[0]!r}, which is "
                "neither an input of the ensemble nor an output of a step"
            )
    fixed = [
        step for step in config.get("ensemble_scheduling", {}).get("step", ()) if step.get("model_version", -1) > 0
    ]
    return [
        f"model_version {step['model_version']} of the step {step['model_name']!r} has no effect: a deployment pins "
        "the versions of its members"
        for step in fixed
    ]


def default_file(config: Mapping[str, Any], backend: str) -> str | None:
    """Return the file or folder that a backend loads if the configuration names none; None if that is unknown."""
    return _PLATFORM_FILES.get(str(config.get("platform", "")), MODEL_FILES.get(backend))


def outside_environment(config: Mapping[str, Any]) -> str:
    """Return the execution environment that a configuration names outside the model's folder; empty without one."""
    environment = str(config.get("parameters", {}).get(ENVIRONMENT_PARAMETER, {}).get("string_value", ""))
    return "" if environment.startswith(_MODEL_FOLDER) else environment


def _parse(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_CONFIG_BYTES:
        raise InvalidArtifactError(f"{CONFIG_FILE} has {len(content)} bytes; the limit is {MAX_CONFIG_BYTES}")
    try:
        message = text_format.Parse(content.decode(), ModelConfig())
    except UnicodeDecodeError as error:
        raise InvalidArtifactError(f"{CONFIG_FILE} is not UTF-8 text (byte {error.start})") from error
    except text_format.ParseError as error:
        reason = str(error).partition(" : ")[2] or str(error)
        raise InvalidArtifactError(
            f"{CONFIG_FILE} is not a valid Triton model configuration: line {error.GetLine()}: "
            f"{reason.replace('inference.', '')}"
        ) from error
    except RecursionError as error:
        raise InvalidArtifactError(f"{CONFIG_FILE} is nested too deeply") from error
    return message_to_json(message)


def _backend(config: Mapping[str, Any], paths: Collection[str]) -> str:
    if platform := config.get("platform"):
        if known := _PLATFORMS.get(str(platform)):
            return known
        raise InvalidArtifactError(
            f"{CONFIG_FILE} names the unknown platform {platform!r}; name a backend instead, for example "
            'backend: "onnxruntime"'
        )
    found = [backend for backend, file in MODEL_FILES.items() if f"{STORED_FOLDER}/{file}" in paths]
    if len(found) == 1:
        return found[0]
    raise InvalidArtifactError(f'{CONFIG_FILE} names no backend; add one, for example backend: "onnxruntime"')


def _check_model_file(config: Mapping[str, Any], backend: str, paths: Collection[str]) -> None:
    by_capability = config.get("cc_model_filenames", {}).values()
    default = default_file(config, backend)
    named = [config.get("default_model_filename") or default, *by_capability]
    for file in filter(None, named):
        path = f"{STORED_FOLDER}/{file}"
        if by_capability and file == default:
            continue  # only a GPU of another compute capability needs it
        if path not in paths and not any(one.startswith(f"{path}/") for one in paths):
            raise InvalidArtifactError(
                f"the version folder has no {file!r}, which the backend {backend!r} loads; add it, or set "
                f"default_model_filename in {CONFIG_FILE}"
            )


def _named_files(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the files that a configuration names, as paths in the model's folder, with the field that names each."""
    for output in config.get("output", ()):
        if label := output.get("label_filename"):
            yield f"label_filename of output {output.get('name')!r}", str(label)
    for request in config.get("model_warmup", ()):
        for name, tensor in request.get("inputs", {}).items():
            if file := tensor.get("input_data_file"):
                yield f"model_warmup input {name!r}", f"warmup/{file}"
    for state in config.get("sequence_batching", {}).get("state", ()):
        for initial in state.get("initial_state", ()):
            if file := initial.get("data_file"):
                yield f"initial_state of {state.get('input_name')!r}", f"initial_state/{file}"
    environment = config.get("parameters", {}).get(ENVIRONMENT_PARAMETER, {}).get("string_value", "")
    if environment.startswith(_MODEL_FOLDER):
        yield ENVIRONMENT_PARAMETER, environment.removeprefix(_MODEL_FOLDER)


def _check_named(field: str, path: str, paths: Collection[str]) -> None:
    if version_folders([path]):
        raise InvalidArtifactError(
            f"{field} in {CONFIG_FILE} names {path!r}, which is in a version folder, whose number changes; move the "
            f"file beside {CONFIG_FILE}"
        )
    if path not in paths and not any(one.startswith(f"{path}/") for one in paths):
        raise InvalidArtifactError(f"{field} in {CONFIG_FILE} names {path!r}, which the directory does not contain")


def _signature(config: Mapping[str, Any]) -> Signature | None:
    batch = (DYNAMIC,) if config.get("max_batch_size", 0) > 0 else ()
    sides = {side: tuple(_tensor(side, item, batch) for item in config.get(side, ())) for side in ("input", "output")}
    if not all(sides.values()):
        return None
    batched = bool(batch) and all(spec.shape[:1] == batch for specs in sides.values() for spec in specs)
    try:
        return Signature(inputs=sides["input"], outputs=sides["output"], batched=batched)
    except ValidationError as error:
        raise InvalidArtifactError(f"{CONFIG_FILE}: {invalid_field(error)}") from error


def _tensor(side: str, item: Mapping[str, Any], batch: tuple[int, ...]) -> TensorSpec:
    name, kind = str(item.get("name", "")), str(item.get("data_type", "TYPE_INVALID"))
    if not name or kind == "TYPE_INVALID":
        raise InvalidArtifactError(f"{CONFIG_FILE}: {side} {name!r} needs a name and a data_type")
    dims = tuple(int(size) for size in item.get("dims", ()))
    if not dims or any(size == 0 or size < DYNAMIC for size in dims):
        raise InvalidArtifactError(f"{CONFIG_FILE}: {side} {name!r} needs dims of 1 or more, or -1, not {list(dims)}")
    dtype = DataType.BYTES if kind == "TYPE_STRING" else DataType(kind.removeprefix("TYPE_"))
    # The batch dimension is not part of a tensor whose values are shapes (TensorRT).
    shape = dims if item.get("is_shape_tensor") else batch + dims
    return TensorSpec(name=name, dtype=dtype, shape=shape, optional=bool(item.get("optional")))
