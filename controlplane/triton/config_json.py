"""Triton's model configuration as JSON and as text, and the merge of a user's overrides.

The fields are those of tritonclient's protobuf type, so a misspelt field is detected here and not by a server.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2

from controlplane.errors import InvalidConfigError

ModelConfig = model_config_pb2.ModelConfig
DIGEST_PARAMETER = "tcp_config_digest"
"""Parameter with the digest of all fields except name and version policy; it identifies the loaded configuration."""

METADATA_PREFIX = "metadata."
"""Prefix of the parameters that a model file contains. A file must not be able to set a parameter of a backend."""

RESERVED_PARAMETERS = "tcp_"
"""Prefix of the parameters that the control plane sets."""

_WIDE = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


def message_to_json(message: Any) -> dict[str, Any]:
    """Write a message in Triton's JSON form: proto field names, and 64-bit integers as numbers.

    protobuf's JSON writes 64-bit integers as strings. Both sides can read them, but they are inconvenient in ``dims``.
    """
    document = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return dict(_numbers(message.DESCRIPTOR, document))


def json_to_message(config: Mapping[str, Any]) -> Any:
    """Parse Triton's JSON form.

    Raises:
        InvalidConfigError: A field is unknown or has a value of the wrong type.
    """
    try:
        return json_format.ParseDict(dict(config), ModelConfig())
    except json_format.ParseError as error:
        raise InvalidConfigError(f"not a valid Triton model configuration: {error}") from error


def to_pbtxt(config: Mapping[str, Any]) -> str:
    """Write a configuration as the text of a ``config.pbtxt``.

    Raises:
        InvalidConfigError: A field is unknown or has a value of the wrong type.
    """
    return str(text_format.MessageToString(json_to_message(config), as_utf8=True))


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the digest of everything that affects how a model runs: all fields except name and version policy."""
    content = {key: value for key, value in config.items() if key not in {"name", "version_policy", "parameters"}}
    content["parameters"] = {
        key: value for key, value in config.get("parameters", {}).items() if key != DIGEST_PARAMETER
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def differences(asked: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return the fields in which a loaded configuration differs from the requested one.

    Two kinds of fields are excluded: fields that were not requested, which are Triton's own defaults, and the loaded
    versions and their name, which are decided for each load.

    Args:
        asked: The configuration that was sent with the load.
        present: The configuration that Triton reports.
    """
    wanted = message_to_json(json_to_message(asked))
    skipped = {"name", "version_policy"}
    return _differences({key: value for key, value in wanted.items() if key not in skipped}, present, "")


def _differences(asked: Any, present: Any, path: str) -> list[str]:
    if isinstance(asked, Mapping) and isinstance(present, Mapping):
        found: list[str] = []
        for key, value in asked.items():
            here = f"{path}.{key}" if path else str(key)
            if key not in present:
                found.append(f"{here}: requested {_short(value)}, but Triton has none")
            else:
                found += _differences(value, present[key], here)
        return found
    if isinstance(asked, list) and isinstance(present, list) and len(asked) == len(present):
        return [
            one
            for number, pair in enumerate(zip(asked, present, strict=True))
            for one in _differences(*pair, f"{path}[{number}]")
        ]
    return [] if asked == present else [f"{path}: requested {_short(asked)}, but Triton has {_short(present)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def merge(base: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge overrides into a configuration: messages and maps by key, inputs and outputs by name, other lists whole.

    Args:
        base: A generated configuration.
        overrides: Fields in Triton's JSON form, as `canonical` returns them.
    """
    merged = dict(base)
    for key, value in overrides.items():
        before = merged.get(key)
        if isinstance(value, Mapping) and isinstance(before, dict):
            merged[key] = merge(before, value)
        elif key in {"input", "output"} and isinstance(before, list):
            by_name = {item.get("name"): item for item in value}
            merged[key] = [merge(item, by_name.get(item["name"], {})) for item in before]
        else:
            merged[key] = value
    return merged


def canonical(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of a partial configuration and return them with their proto names.

    Raises:
        InvalidConfigError: A field is unknown or its value has the wrong type; the message names it.
    """
    document = _canonical(ModelConfig.DESCRIPTOR, overrides, "config_overrides")
    try:
        json_format.ParseDict(document, ModelConfig())
    except json_format.ParseError as error:
        raise InvalidConfigError(f"config_overrides: {error}") from error
    return document


def _canonical(descriptor: Descriptor, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidConfigError(f"{path} must be an object, not {json.dumps(value)[:80]}", field=path)
    fields = {field.name: field for field in descriptor.fields}
    names = fields | {field.json_name: field for field in descriptor.fields}
    document: dict[str, Any] = {}
    for key, item in value.items():
        field = names.get(key)
        here = f"{path}.{key}"
        if field is None:
            raise InvalidConfigError(
                f"{here} is not a field of Triton's {descriptor.name}; its fields: {', '.join(sorted(fields))}",
                field=here,
            )
        if field.name in document:
            raise InvalidConfigError(f"{here} is given twice", field=here)
        if item is None:
            raise InvalidConfigError(f"{here} is null; omit it to keep the generated value", field=here)
        document[field.name] = _canonical_field(field, item, here)
    return document


def _canonical_field(field: FieldDescriptor, item: Any, path: str) -> Any:
    nested = field.message_type
    if nested is None:
        return item
    if nested.GetOptions().map_entry:
        target = nested.fields_by_name["value"].message_type
        if not isinstance(item, Mapping):
            raise InvalidConfigError(f"{path} must be an object", field=path)
        return {
            str(key): entry if target is None else _canonical(target, entry, f"{path}.{key}")
            for key, entry in item.items()
        }
    if field.is_repeated:
        if not isinstance(item, list):
            raise InvalidConfigError(f"{path} must be a list", field=path)
        return [_canonical(nested, entry, f"{path}[{number}]") for number, entry in enumerate(item)]
    return _canonical(nested, item, path)


def _numbers(descriptor: Descriptor, document: Mapping[str, Any]) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    for key, value in document.items():
        field = descriptor.fields_by_name[key]
        nested = field.message_type
        if nested is not None and nested.GetOptions().map_entry:
            target = nested.fields_by_name["value"]
            converted[key] = {name: _number(target, entry) for name, entry in value.items()}
        elif field.is_repeated:
            converted[key] = [_number(field, entry) for entry in value]
        else:
            converted[key] = _number(field, value)
    return converted


def _number(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return _numbers(field.message_type, value)
    return int(value) if field.cpp_type in _WIDE else value
