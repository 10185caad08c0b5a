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
from controlplane.client.models import Deployment
from controlplane.domain.names import Reference
from controlplane.domain.samples import decode_samples
from controlplane.domain.signature import Signature
from controlplane.errors import InvalidInputError
from controlplane.gateway.views import GatewayAddress


class Via(StrEnum):
    """Which way a request goes."""

    AUTO = "auto"
    GATEWAY = "gateway"
    API = "api"


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a deployed model.

    Attributes:
        deployment: The deployment.
        tensors: Its inputs, in the v2 protocol's JSON.
        signature: That of the version that is meant.
        version: The version that is asked for; None: the one that answers.
        timeout: Deadline in seconds.
    """

    deployment: Deployment
    tensors: Sequence[dict[str, Any]]
    signature: Signature | None
    version: int | None
    timeout: float


def prepare(client: Client, model: str, source: str | None, *, version: int | None, timeout: float) -> Request:
    """Return the request to send: inputs from a file or stdin, else those of the version's first golden sample.

    Raises:
        InvalidInputError: The file does not fit, or the version has no golden samples.
    """
    deployment = client.fetch(Deployment, deployment_path(model))
    reference = Reference(model, version=version or _answering(deployment))
    detail = fetch_version(client, reference)
    signature = detail.manifest.signature
    if source is not None:
        tensors = read_tensors(source, signature)
    elif detail.manifest.golden is None:
        raise InvalidInputError(f"{reference} carries no golden samples; give the inputs with --input FILE")
    else:
        samples = decode_samples(client.call("GET", f"{version_path(reference)}/samples").content)
        tensors = [to_protocol(name, array) for name, array in samples[0].inputs.items()]
    return Request(deployment, tensors, signature, version, timeout)


def ask(client: Client, request: Request, via: Via) -> dict[str, Any]:
    """Send a request and return the answer, its outputs in the order of the signature.

    By itself it goes to the gateway where that can be reached from here and would answer, else to the API's route,
    which says best why nothing answers.

    Raises:
        ClientError: It was refused; or the gateway is wanted, and there is none.
        NotRunningError: Nobody answers there.
        WaitTimeoutError: No answer in time.
    """
    if via is Via.API:
        return _ordered(_by_api(client, request), request.signature)
    found = client.get("/v1/info").get("gateway")
    gateway = GatewayAddress.model_validate(found) if found else None
    obstacle = why_not(gateway, client.url, client.credentials)
    if via is Via.AUTO and (obstacle or not _answers(request)):
        return _ordered(_by_api(client, request), request.signature)
    if obstacle or gateway is None:
        raise ClientError(f"{obstacle}; --via api asks the API's route", code="not-found", status=404)
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
    """Whether the gateway would answer, after a load if need be."""
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
