"""The request behind `infer`."""

from typing import Any

from controlplane.cli.client import Client
from controlplane.cli.records import Deployment
from controlplane.cli.references import fetch_version, version_path
from controlplane.cli.rollout import deployment_path
from controlplane.cli.tensors import read_tensors, to_protocol
from controlplane.domain.names import Reference
from controlplane.domain.samples import decode_samples
from controlplane.errors import InvalidInputError


def request_tensors(client: Client, model: str, source: str | None, version: int | None) -> list[dict[str, Any]]:
    """Return the inputs to send: from a file or stdin, else those of the version's first golden sample.

    Raises:
        InvalidInputError: The file does not fit, or the version has no golden samples.
    """
    if version is None:
        version = _answering(client.fetch(Deployment, deployment_path(model)))
    reference = Reference(model, version=version)
    detail = fetch_version(client, reference)
    if source is not None:
        return read_tensors(source, detail.manifest.signature)
    if detail.manifest.golden is None:
        raise InvalidInputError(f"{reference} carries no golden samples; give the inputs with --input FILE")
    samples = decode_samples(client.call("GET", f"{version_path(reference)}/samples").content)
    return [to_protocol(name, array) for name, array in samples[0].inputs.items()]


def ask(
    client: Client, model: str, tensors: list[dict[str, Any]], *, version: int | None, timeout: float
) -> dict[str, Any]:
    """Send the request and return the answer."""
    answer: dict[str, Any] = client.post(
        f"{deployment_path(model)}/infer",
        {"inputs": tensors},
        read_seconds=timeout + 10,
        version=version,
        timeout=timeout,
    )
    return answer


def _answering(deployment: Deployment) -> int:
    for server in deployment.status.servers if deployment.status else ():
        if server.serving_version is not None:
            return server.serving_version
    return deployment.spec.version
