"""Checks objects against the JSON schemas of Kubernetes, which the package kubernetes-validate carries."""

from functools import cache
from typing import Any

import jsonschema
import referencing
from kubernetes_validate import utils

VERSIONS = ("1.29", "1.32", "1.35", "1.37")
"""The oldest release that the chart supports (kubeVersion in Chart.yaml), newer ones, and the newest with schemas."""


@cache
def _folder(version: str) -> str:
    exact = next(one for one in reversed(utils.all_versions()) if utils.major_minor(one) == version)
    return f"kubernetes-json-schema/v{exact}-local-strict"


@cache
def _definitions(version: str) -> Any:
    return (
        referencing.Resource.from_contents(utils.schema_contents(f"{_folder(version)}/_definitions.json", version))
        @ referencing.Registry()
    )


@cache
def _validator(version: str, kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    group, _, rest = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.partition('.')[0]}-{rest}" if group else f"{kind.lower()}-{rest}"
    schema = utils.schema_contents(f"{_folder(version)}/{name}.json", version)
    registry = referencing.Resource.from_contents(schema) @ _definitions(version)
    return jsonschema.Draft202012Validator(schema, registry=registry)


def faults(version: str, document: dict[str, Any]) -> list[str]:
    """Return what is wrong with an object of Kubernetes' own API, unknown fields included."""
    validator = _validator(version, document["kind"], document["apiVersion"])
    where = f"{document['kind']} {document['metadata']['name']} (Kubernetes {version})"
    return [f"{where}: {'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]
