"""The table of what each route requires: the scope, and how it relates to the models of a key.

A test compares it with the OpenAPI document, so that every route has an entry; a route without one requires a key with
the scope ``admin`` for all models.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from controlplane.domain.access import Principal, Scope


class Models(StrEnum):
    """How a route relates to models, for a key that is restricted to some models."""

    PATH = "path"
    """It concerns the model in its path; the authenticator checks it."""
    CHECKED = "checked"
    """The route itself checks, or leaves out the models that the key does not cover."""
    NONE = "none"
    """It concerns no model."""
    ALL = "all"
    """It concerns all models: a restricted key may not use it."""


@dataclass(frozen=True, slots=True)
class Permission:
    """The requirements of a route.

    Attributes:
        scope: The scope; None: the route is public and needs no key.
        models: How it relates to models.
    """

    scope: Scope | None
    models: Models = Models.NONE


_PUBLIC = Permission(None)
_READ, _INFER, _DEPLOY = (Permission(scope, Models.PATH) for scope in (Scope.READ, Scope.INFER, Scope.DEPLOY))
UNKNOWN = Permission(Scope.ADMIN, Models.ALL)

PERMISSIONS: Mapping[str, Permission] = {
    # Models and versions
    "listModels": Permission(Scope.READ, Models.CHECKED),
    "getModel": _READ,
    "putModel": _DEPLOY,
    "patchModel": _DEPLOY,
    "deleteModel": _DEPLOY,
    "getModelHistory": _READ,
    "listAliases": _READ,
    "getAlias": _READ,
    "putAlias": _DEPLOY,
    "deleteAlias": _DEPLOY,
    "listVersions": _READ,
    "publishVersion": _DEPLOY,
    "getVersion": _READ,
    "getPortability": _READ,
    "deleteVersion": _DEPLOY,
    "addSignature": _DEPLOY,
    "listSignatures": _READ,
    "downloadFile": _READ,
    "listReports": _READ,
    "downloadSamples": _READ,
    "listRecordedSamples": _READ,
    "deleteRecordedSamples": _DEPLOY,
    "addSamples": _DEPLOY,
    # Inputs of clients are kept: a decision of an administrator.
    "recordTraffic": Permission(Scope.ADMIN, Models.PATH),
    "downloadLog": _READ,
    # Uploads and conversions: an upload is not part of a model yet
    "createUpload": Permission(Scope.DEPLOY),
    "getUpload": Permission(Scope.DEPLOY),
    "deleteUpload": Permission(Scope.DEPLOY),
    "putBlob": Permission(Scope.DEPLOY),
    "headBlob": Permission(Scope.DEPLOY),
    "presignUpload": Permission(Scope.DEPLOY),
    "completeBlob": Permission(Scope.DEPLOY),
    "convert": Permission(Scope.DEPLOY, Models.CHECKED),
    "validate": Permission(Scope.DEPLOY),
    "tune": Permission(Scope.DEPLOY, Models.CHECKED),
    "listOperations": Permission(Scope.READ, Models.CHECKED),
    "getOperation": Permission(Scope.READ, Models.CHECKED),
    "followOperation": Permission(Scope.READ, Models.CHECKED),
    "cancelOperation": Permission(Scope.DEPLOY, Models.CHECKED),
    # Deployments
    "listDeployments": Permission(Scope.READ, Models.CHECKED),
    "deploy": _DEPLOY,
    "getDeployment": _READ,
    "undeploy": _DEPLOY,
    "listDeploymentRevisions": _READ,
    "rollback": _DEPLOY,
    "unloadDeployment": _DEPLOY,
    "waitForDeployment": _READ,
    "getDeploymentHealth": _READ,
    "getRepositoryEntry": _READ,
    "getExplanation": _READ,
    "apply": Permission(Scope.DEPLOY, Models.CHECKED),
    "listRollouts": Permission(Scope.READ, Models.CHECKED),
    "getRollout": _READ,
    "getDeploymentMetrics": _READ,
    "getFootprints": _READ,
    "promoteRollout": _DEPLOY,
    "abortRollout": _DEPLOY,
    "pauseRollout": _DEPLOY,
    "resumeRollout": _DEPLOY,
    # To send inference requests, and to load and hold a model for them
    "infer": _INFER,
    "loadDeployment": _INFER,
    "takeHold": _INFER,
    "listHolds": _INFER,
    "getHold": _INFER,
    "renewHold": _INFER,
    "giveHoldBack": _INFER,
    # Servers and the control plane itself
    "listEvents": Permission(Scope.READ, Models.CHECKED),
    "listServers": Permission(Scope.READ, Models.CHECKED),
    "getServer": Permission(Scope.READ, Models.CHECKED),
    "cordonServer": Permission(Scope.ADMIN, Models.ALL),
    "uncordonServer": Permission(Scope.ADMIN, Models.ALL),
    "getDrainPlan": Permission(Scope.READ, Models.ALL),
    "listDevices": Permission(Scope.READ),
    "getMemory": Permission(Scope.READ, Models.ALL),
    "getGateway": Permission(Scope.READ, Models.ALL),
    "getScrub": Permission(Scope.READ, Models.ALL),
    "collectGarbage": Permission(Scope.ADMIN, Models.ALL),
    "checkStore": Permission(Scope.ADMIN, Models.ALL),
    "defragment": Permission(Scope.ADMIN, Models.ALL),
    "getInfo": Permission(Scope.READ, Models.CHECKED),
    "metrics": Permission(Scope.READ, Models.ALL),
    "getAuditLog": Permission(Scope.AUDIT, Models.CHECKED),
    "createKey": Permission(Scope.ADMIN, Models.ALL),
    "listKeys": Permission(Scope.ADMIN, Models.ALL),
    "getKey": Permission(Scope.ADMIN, Models.ALL),
    "revokeKey": Permission(Scope.ADMIN, Models.ALL),
    # Sessions of browsers: the routes themselves check the key, the code or the cookie
    "getSession": _PUBLIC,
    "signIn": _PUBLIC,
    "signOut": _PUBLIC,
    "createSignInCode": Permission(Scope.READ),
    # For orchestrators, which have no key
    "healthz": _PUBLIC,
    "readyz": _PUBLIC,
}

PUBLIC_PATHS = frozenset({"/openapi.json", "/docs", "/redoc"})
"""The documentation, which reveals nothing about this installation."""


def is_page(method: str, path: str) -> bool:
    """Return whether a request is for a file of the page at ``/ui``: the same for everyone, without any data."""
    return method in {"GET", "HEAD"} and (path in {"/", "/ui"} or path.startswith("/ui/"))


_PARAMETER = re.compile(r"\{(\w+)\}")
_REST_OF_PATH = frozenset({"downloadFile"})
"""Routes whose last parameter may contain slashes."""


class RouteTable:
    """Finds the requirements of a request by the paths of the OpenAPI document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._routes: dict[str, list[tuple[re.Pattern[str], str]]] = {}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                name = operation["operationId"]
                self._routes.setdefault(method.upper(), []).append((_pattern(path, name in _REST_OF_PATH), name))

    def needs(self, method: str, path: str) -> list[tuple[str, Permission, str]]:
        """Return every route that may match a request, by name, with its requirements and the model in its path.

        If several match, all of them apply, because the router decides which one is used.
        """
        routes = self._routes.get(method, [])
        if method == "HEAD":
            routes = [*routes, *self._routes.get("GET", [])]
        return [
            (name, PERMISSIONS.get(name, UNKNOWN), match.groupdict().get("model", ""))
            for pattern, name in routes
            if (match := pattern.fullmatch(path))
        ]


def permit(principal: Principal, name: str, need: Permission, model: str) -> None:
    """Raise ForbiddenError unless the caller may use a route.

    Args:
        principal: The caller.
        name: The route's operation id.
        need: The route's requirements.
        model: The model in its path.
    """
    if need.scope is None:
        return
    principal.require_scope(need.scope, name)
    if need.models is Models.PATH:
        principal.require_model(model)
    elif need.models is Models.ALL:
        principal.require_wide(name)


def _pattern(path: str, rest: bool) -> re.Pattern[str]:
    pieces = _PARAMETER.split(path)
    last = len(pieces) - 2
    # Literal text and parameter names alternate.
    return re.compile(
        "".join(
            re.escape(piece) if number % 2 == 0 else f"(?P<{piece}>{'.*' if rest and number == last else '[^/]+'})"
            for number, piece in enumerate(pieces)
        )
    )
