"""What a server runs versions with, as far as it is observed or declared: the target for `domain.portability`."""

from controlplane.domain.advisories import release_of
from controlplane.domain.portability import Target, embedded_target, image_target, with_native_backends
from controlplane.servers.server import ManagedServer
from controlplane.triton.embedded.backend_directory import native_backends
from controlplane.triton.embedded.runtime_versions import packages

OTHER_IMAGE = "other"
_AMBIGUOUS = "24.10"
"""The binary in the wheel nvidia-pytriton has the version of this release, and backends that nothing reports."""


def target_of(server: ManagedServer, triton_version: str) -> Target:
    """Return the target for a server; what is not known of it is left open.

    Args:
        server: The server.
        triton_version: The version that it reports; empty if it was not observed.
    """
    if server.embedded is not None:
        native, release = native_backends(server.embedded.backends), release_of(triton_version)
        return with_native_backends(embedded_target(packages(), server.name), native, release)
    if server.image == OTHER_IMAGE:
        return Target(server.name, "a Triton with unknown backends (its setting `image` is other)")
    release = server.image or release_of(triton_version)
    if not release:
        return Target(server.name, "a Triton of an unknown version")
    if release == _AMBIGUOUS and not server.image:
        return Target(
            server.name,
            f"Triton {triton_version}, either NVIDIA's image {release} or the wheel nvidia-pytriton "
            "(its setting `image` would say which)",
        )
    return image_target(release, server.name)
