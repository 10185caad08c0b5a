"""References on the command line, and the API paths for them."""

from controlplane.client.http import Client, segment
from controlplane.client.models import VersionDetail
from controlplane.domain.names import Reference


def version_path(reference: Reference) -> str:
    """Return the API's path of the version that a reference names."""
    if reference.version is not None:
        which = str(reference.version)
    elif reference.alias is not None:
        which = f"@{reference.alias}"
    else:
        which = "latest"
    return f"/v1/models/{segment(reference.model)}/versions/{segment(which)}"


def fetch_version(client: Client, reference: Reference | str) -> VersionDetail:
    """Return the version that a reference names."""
    if isinstance(reference, str):
        reference = Reference.parse(reference)
    return client.fetch(VersionDetail, version_path(reference))
