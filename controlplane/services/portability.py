"""On which Triton servers and images a version loads."""

import re
from collections.abc import Mapping, Sequence

from controlplane.domain.portability import (
    EMBEDDED,
    IMAGE,
    Loads,
    ModelFacts,
    Target,
    TargetReport,
    check,
    check_all,
    embedded_target,
    image_target,
    image_targets,
)
from controlplane.errors import InvalidInputError
from controlplane.reconciler.controller import Reconciler
from controlplane.servers.server_set import ServerSet
from controlplane.servers.target import target_of
from controlplane.triton.embedded.runtime_versions import packages


class Portability:
    """Compares versions with the servers of this instance, an embedded server, and NVIDIA's images."""

    def __init__(self, servers: ServerSet, reconciler: Reconciler) -> None:
        self._servers = servers
        self._reconciler = reconciler

    def targets(self, names: Sequence[str] = ()) -> tuple[Target, ...]:
        """Return the targets with these names, or all that are known: servers, embedded, images.

        Raises:
            InvalidInputError: A name is none of a server, ``embedded`` and a release.
        """
        versions = {status.name: status.triton_version for status in self._reconciler.servers()}
        servers = {server.name: target_of(server, versions.get(server.name, "")) for server in self._servers}
        if not names:
            here = {EMBEDDED: embedded_target(packages())} | servers
            return (*here.values(), *image_targets())
        found = []
        for name in dict.fromkeys(names):
            if name in servers:
                found.append(servers[name])
            elif name == EMBEDDED:
                found.append(embedded_target(packages()))
            elif re.fullmatch(IMAGE, name):
                found.append(image_target(name))
            else:
                have = ", ".join(servers) or "none"
                raise InvalidInputError(
                    f"unknown target {name[:80]!r}; use embedded, the release of an image such as 26.08, or a server "
                    f"(the servers are: {have})",
                    target=name[:80],
                )
        return tuple(found)

    def check(self, facts: ModelFacts, names: Sequence[str] = ()) -> tuple[TargetReport, ...]:
        """Return whether a version loads on the named targets, or on all that are known.

        Raises:
            InvalidInputError: A name is none of a server, ``embedded`` and a release.
        """
        return check_all(facts, self.targets(names))

    def require_loadable(self, reference: str, facts: ModelFacts, node_selector: Mapping[str, str]) -> None:
        """Refuse a version that none of the servers can load.

        Nothing is refused if one of them is embedded, because other instances may then have servers that this one does
        not know, or if the version is loaded somewhere.

        Args:
            reference: The version, as name:7.
            facts: Its facts.
            node_selector: Labels that its servers must have.

        Raises:
            InvalidInputError: Every server with these labels is known to be unable to load it.
        """
        model, _, number = reference.partition(":")
        found = []
        for status in self._reconciler.servers():
            server = self._servers.find(status.name)
            if server is None:
                continue  # it has just left
            if any(server.labels.get(key) != value for key, value in node_selector.items()):
                continue
            loaded = any(one.model == model and str(one.version) == number for one in status.models)
            if server.embedded is not None or loaded:
                return
            found.append(check(facts, target_of(server, status.triton_version)))
        if found and all(one.loads is Loads.NO for one in found):
            why = "; ".join(f"{one.target} runs {one.runs}: {', '.join(one.reasons)}" for one in found[:3])
            raise InvalidInputError(
                f"{reference} cannot be deployed, since no server can load it: {why}. Publish a version that they can "
                f"load, or add a server; `tritonctl show {reference}` lists the images that load it",
                model=model,
            )
