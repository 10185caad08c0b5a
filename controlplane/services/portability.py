"""On which Triton servers and images a version loads."""

import re
from collections.abc import Sequence

from controlplane.domain.portability import (
    EMBEDDED,
    IMAGE,
    ModelFacts,
    Target,
    TargetReport,
    check_all,
    embedded_target,
    image_target,
    image_targets,
)
from controlplane.errors import InvalidInputError
from controlplane.reconciler.controller import Reconciler
from controlplane.servers.server import ManagedServer
from controlplane.servers.target import target_of
from controlplane.triton.embedded.runtime_versions import packages

TARGETS_MAX = 64


class Portability:
    """Compares versions with the servers of this instance, an embedded server, and NVIDIA's images."""

    def __init__(self, servers: Sequence[ManagedServer], reconciler: Reconciler) -> None:
        self._servers = {server.name: server for server in servers}
        self._reconciler = reconciler

    def targets(self, names: Sequence[str] = ()) -> tuple[Target, ...]:
        """Return the targets with these names, or all that are known: servers, embedded, images.

        Raises:
            InvalidInputError: A name is none of a server, ``embedded`` and a release.
        """
        versions = {status.name: status.triton_version for status in self._reconciler.servers()}
        servers = {name: target_of(server, versions.get(name, "")) for name, server in self._servers.items()}
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
