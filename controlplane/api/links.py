"""OpenAPI links from a response to the requests that need its values, for clients and tests that explore the API."""

from typing import Any

_ID = "$response.body#/id"
_MODEL = {"model": "$request.path.model"}
_OPERATION = {"operation_id": _ID}
_UPLOAD = {"upload_id": _ID}
_HOLD = {**_MODEL, "hold": _ID}
_ALIAS = {**_MODEL, "alias": "$request.path.alias"}

# By operation and status of the response: the operations that it leads to, each with its parameters.
_LINKS: dict[tuple[str, str], dict[str, dict[str, str]]] = {
    ("createUpload", "201"): {
        "getUpload": _UPLOAD,
        "deleteUpload": _UPLOAD,
        "presignUpload": _UPLOAD,
        "putBlob": {**_UPLOAD, "sha256": "$response.body#/files/0/sha256"},
    },
    ("putModel", "200"): dict.fromkeys(("getModel", "patchModel", "deleteModel", "getModelHistory"), _MODEL),
    ("putModel", "201"): dict.fromkeys(("getModel", "patchModel", "deleteModel", "getModelHistory"), _MODEL),
    ("putAlias", "200"): {"getAlias": _ALIAS, "deleteAlias": _ALIAS, "listAliases": _MODEL, "deploy": _MODEL},
    ("publishVersion", "202"): {"getOperation": _OPERATION, "cancelOperation": _OPERATION, "listVersions": _MODEL},
    ("convert", "202"): {"getOperation": _OPERATION, "cancelOperation": _OPERATION},
    ("validate", "202"): {"getOperation": _OPERATION, "cancelOperation": _OPERATION},
    ("collectGarbage", "202"): {"getOperation": _OPERATION},
    ("deploy", "202"): {
        "getOperation": {"operation_id": "$response.body#/operation_id"},
        **dict.fromkeys(
            ("getDeployment", "listDeploymentRevisions", "rollback", "unloadDeployment", "getExplanation", "undeploy"),
            _MODEL,
        ),
    },
    ("takeHold", "201"): {"getHold": _HOLD, "renewHold": _HOLD, "giveHoldBack": _HOLD, "listHolds": _MODEL},
}


def add_links(document: dict[str, Any]) -> None:
    """Write the links into an OpenAPI document if it has the responses and the operations that they name."""
    operations = {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
        if isinstance(operation, dict) and "operationId" in operation
    }
    for (source, status), targets in _LINKS.items():
        if source not in operations:
            continue  # an application with only the routes for orchestrators
        answer = operations[source]["responses"].get(status)
        if answer is not None:
            answer["links"] = {
                target: {"operationId": target, "parameters": parameters}
                for target, parameters in targets.items()
                if target in operations
            }
