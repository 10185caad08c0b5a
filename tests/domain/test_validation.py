"""Refused documents are explained in our own words, wherever they come in."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import controlplane
import converters
from controlplane.api.schemas.deployments import DeployRequest
from controlplane.api.schemas.keys import KeyRequestBody
from controlplane.api.schemas.versions import PublishRequest, ValidationRequest
from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.manifest import Manifest
from controlplane.domain.signature import Signature
from controlplane.domain.validation import invalid_field
from controlplane.settings import Settings
from converters.options import ConversionOptions

# How pydantic's own messages begin.
_RAW = re.compile(
    r"Input should|Field required|should have at|Extra inputs|Value error|Assertion failed|Tuple should|"
    r"String should|List should|Invalid JSON|validation error|type=|pydantic",
    re.IGNORECASE,
)


@pytest.mark.parametrize(
    ("model", "document", "expected"),
    [
        (PublishRequest, {}, "upload_id: is missing"),
        (PublishRequest, {"upload_id": 5}, "upload_id: must be a string, not 5"),
        (PublishRequest, {"upload_id": "u", "signatur": {}}, "signatur: is not a known field; remove it"),
        (PublishRequest, {"upload_id": "u" * 65}, "upload_id: has more than 64 characters"),
        (PublishRequest, {"upload_id": "u", "format": "tflite"}, "format: must be one of 'onnx'"),
        (PublishRequest, {"upload_id": "u", "sample_count": 0}, "sample_count: must be at least 1, not 0"),
        (PublishRequest, {"upload_id": "u", "seed": 2**32}, "seed: must be less than 4294967296"),
        (PublishRequest, {"upload_id": "u", "seed": "many"}, "seed: must be a whole number, not 'many'"),
        (PublishRequest, {"upload_id": "u", "golden": "maybe"}, "golden: must be true or false, not 'maybe'"),
        (PublishRequest, {"upload_id": "u", "labels": []}, "labels: must be an object"),
        (PublishRequest, {"upload_id": "u", "aliases": "a"}, "aliases: must be a list, not 'a'"),
        (PublishRequest, {"upload_id": "u", "aliases": ["a"] * 17}, "aliases: can have at most 16 elements and has 17"),
        (
            PublishRequest,
            {"upload_id": "u", "metrics": {"a": float("inf")}},
            "metrics.a: must be a finite number, not inf",
        ),
        (ValidationRequest, [], "must be an object"),
        (DeployRequest, {"reference": "m", "settings": {"max_batch_size": -1}}, "max_batch_size: must be at least 0"),
        (DeploymentSettings, {"min_replicas": 3, "max_replicas": 2}, "max_replicas 2 is less than min_replicas 3"),
        (DeploymentSettings, {"keep_alive_seconds": "long"}, "keep_alive_seconds: must be a number, not 'long'"),
        (Signature, {"inputs": [], "outputs": []}, "inputs: needs at least 1 elements and has 0 (and 1 more)"),
        (KeyRequestBody, {"name": "n", "scopes": ["root"]}, "scopes.0: must be one of"),
        (KeyRequestBody, {"name": "n", "scopes": ["read"], "expires_at": "soon"}, "expires_at: must be a time such as"),
        (ConversionOptions, {"target": "onnx", "factory": "f"}, "factory: does not have the required form"),
        (
            Manifest,
            {"format": "onnx", "files": [{"path": "a", "sha256": "0", "size_bytes": 1}]},
            "files.0.sha256: does not",
        ),
        (Settings, {"api": {"port": "x"}}, "api.port: must be a whole number, not 'x'"),
    ],
)
def test_validation_errors_use_plain_messages(model: type[BaseModel], document: Any, expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(document)
    said = invalid_field(caught.value)
    assert expected in said
    assert not _RAW.search(said)


def test_a_secret_is_not_repeated() -> None:
    class Login(BaseModel):
        password: int

    with pytest.raises(ValidationError) as caught:
        Login.model_validate({"password": "hunter2"})
    assert invalid_field(caught.value) == "password: must be a whole number"


def test_no_other_module_reads_library_error_messages() -> None:
    """pydantic's messages are read in one module alone."""
    roots = [Path(package.__file__ or "").parent for package in (controlplane, converters)]
    readers = {
        path.name
        for root in roots
        for path in root.rglob("*.py")
        if re.search(
            r"""\[["']msg["']\]|\.errors\(\)\[0\]|ValidationError as error:\n[^\n]*\(f?"[^\n]*\{error\}""",
            path.read_text(),
        )
    }
    assert readers == {"validation.py"}
