"""The request behind `infer`."""

from typing import Any

from controlplane.cli.client import Client
from controlplane.cli.records import Deployment
from controlplane.cli.references import fetch_version, version_path
from controlplane.cli.rollout import deployment_path
from controlplane.cli.tensors import read_tensors, to_protocol
from controlplane.domain.names import Reference
from controlplane.domain.samples import decode_samples
from controlplane.domain.signature import Signature
from controlplane.errors import InvalidInputError


def request_tensors(
    client: Client, model: str, source: str | None, version: int | None
) -> tuple[list[dict[str, Any]], Signature | None]:
    """Return the inputs to send: from a file or stdin, else those of the version's first golden sample.

    The version's signature comes with them.

    Raises:
        InvalidInputError: The file does not fit, or the version has no golden samples.
    """
    if version is None:
        version = _answering(client.fetch(Deployment, deployment_path(model)))
    reference = Reference(model, version=version)
    detail = fetch_version(client, reference)
    signature = detail.manifest.signature
    if source is not None:
        return read_tensors(source, signature), signature
    if detail.manifest.golden is None:
        raise InvalidInputError(f"{reference} carries no golden samples; give the inputs with --input FILE")
    samples = decode_samples(client.call("GET", f"{version_path(reference)}/samples").content)
    return [to_protocol(name, array) for name, array in samples[0].inputs.items()], signature


def ask(
    client: Client,
    model: str,
    tensors: list[dict[str, Any]],
    signature: Signature | None,
    *,
    version: int | None,
    timeout: float,
) -> dict[str, Any]:
    """Send the request and return the answer, its outputs in the order of the signature."""
    answer: dict[str, Any] = client.post(
        f"{deployment_path(model)}/infer",
        {"inputs": tensors},
        read_seconds=timeout + 10,
        version=version,
        timeout=timeout,
    )
    order = {spec.name: place for place, spec in enumerate(signature.outputs if signature else ())}
    answer["outputs"].sort(key=lambda tensor: order.get(tensor["name"], len(order)))
    return answer


def _answering(deployment: Deployment) -> int:
    for server in deployment.status.servers if deployment.status else ():
        if server.serving_version is not None:
            return server.serving_version
    return deployment.spec.version
