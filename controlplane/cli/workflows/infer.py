"""The request behind `infer`."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from controlplane.cli.references import fetch_version, version_path
from controlplane.cli.workflows.deploy import deployment_path
from controlplane.cli.workflows.tensors import read_tensors, to_protocol
from controlplane.client.errors import ClientError, NotRunningError
from controlplane.client.gateway import GatewayClient, why_not
from controlplane.client.http import Client
from controlplane.client.models import Deployment, GatewayAddress
from controlplane.domain.names import Reference
from controlplane.domain.samples import decode_samples
from controlplane.domain.signature import Signature
from controlplane.errors import InvalidInputError


class Via(StrEnum):
    """The path of a request."""

    AUTO = "auto"
    GATEWAY = "gateway"
    API = "api"


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a deployed model.

    Attributes:
        deployment: The deployment.
        tensors: Its inputs, in the v2 protocol's JSON.
        signature: The signature of the requested version.
        version: The requested version; None: the active one.
        timeout: Deadline in seconds.
    """

    deployment: Deployment
    tensors: Sequence[dict[str, Any]]
    signature: Signature | None
    version: int | None
    timeout: float


def prepare(client: Client, model: str, source: str | None, *, version: int | None, timeout: float) -> Request:
    """Return the request to send: inputs from a file or stdin, or else from the version's first golden sample.

    Raises:
        InvalidInputError: The file does not match, or the version has no golden samples.
    """
    deployment = client.fetch(Deployment, deployment_path(model))
    reference = Reference(model, version=version or _answering(deployment))
    detail = fetch_version(client, reference)
    signature = detail.manifest.signature
    if source is not None:
        tensors = read_tensors(source, signature)
    elif detail.manifest.golden is None:
        raise InvalidInputError(f"{reference} has no golden samples; give the inputs with --input FILE")
    else:
        samples = decode_samples(client.call("GET", f"{version_path(reference)}/samples").content)
        tensors = [to_protocol(name, array) for name, array in samples[0].inputs.items()]
    return Request(deployment, tensors, signature, version, timeout)


def deployed(client: Client, model: str) -> Reference:
    """Return the version of a deployment that answers, or that is to answer."""
    deployment = client.fetch(Deployment, deployment_path(model))
    return Reference(model, version=_answering(deployment))


def ask(client: Client, request: Request, via: Via) -> dict[str, Any]:
    """Send a request and return the response with its outputs in the order of the signature.

    By default the request goes to the gateway if that is reachable and would answer, and otherwise to the API's route,
    which reports best why there is no answer.

    Raises:
        ClientError: The request was refused, or the gateway is requested and there is none.
        NotRunningError: Nothing answers at the address.
        WaitTimeoutError: There is no answer in time.
    """
    if via is Via.API:
        return _ordered(_by_api(client, request), request.signature)
    found = client.get("/v1/info").get("gateway")
    gateway = GatewayAddress.model_validate(found) if found else None
    obstacle = why_not(gateway, client.url, client.credentials)
    if via is Via.AUTO and (obstacle or not _answers(request)):
        return _ordered(_by_api(client, request), request.signature)
    if obstacle or gateway is None:
        raise ClientError(f"{obstacle}; use --via api to send the request to the API", code="not-found", status=404)
    try:
        with GatewayClient(gateway.http_url, client.credentials) as connection:
            answer = connection.ask(
                request.deployment.model,
                request.tensors,
                request.signature,
                version=request.version,
                timeout=request.timeout,
            )
    except NotRunningError:
        if via is Via.GATEWAY:
            raise
        answer = _by_api(client, request)
    return _ordered({"via": Via.GATEWAY.value, **answer}, request.signature)


def _by_api(client: Client, request: Request) -> dict[str, Any]:
    answer: dict[str, Any] = client.post(
        f"{deployment_path(request.deployment.model)}/infer",
        {"inputs": request.tensors},
        read_seconds=request.timeout + 10,
        version=request.version,
        timeout=request.timeout,
    )
    return {"via": Via.API.value, **answer}


def _answers(request: Request) -> bool:
    """Return whether the gateway would answer, after a load if necessary."""
    deployment, version = request.deployment, request.version
    if version is None:
        return deployment.spec.loaded
    servers = deployment.status.servers if deployment.status else ()
    return any(version in server.loaded_versions for server in servers)


def _ordered(answer: dict[str, Any], signature: Signature | None) -> dict[str, Any]:
    order = {spec.name: place for place, spec in enumerate(signature.outputs if signature else ())}
    answer["outputs"].sort(key=lambda tensor: order.get(tensor["name"], len(order)))
    return answer


def _answering(deployment: Deployment) -> int:
    for server in deployment.status.servers if deployment.status else ():
        if server.serving_version is not None:
            return server.serving_version
    return deployment.spec.version
