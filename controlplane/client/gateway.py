"""Client of the gateway: the v2 protocol over HTTP, with tensors as bytes.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from pydantic import ValidationError

from controlplane.api.schemas.inference import RequestTensor
from controlplane.client.credentials import Credentials
from controlplane.client.errors import ClientError, NotRunningError, WaitTimeoutError
from controlplane.client.http import CONNECT_SECONDS, Connection, is_loopback
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DataType, Signature
from controlplane.domain.validation import invalid_field
from controlplane.errors import InvalidInputError
from controlplane.gateway.views import GatewayAddress
from controlplane.services.tensors import InputTensor, from_array, read_inputs
from controlplane.triton.answers import from_http
from controlplane.triton.model_config import data_type_of
from controlplane.triton.shapes import Config, from_wire, to_wire
from controlplane.triton.wire import HEAD_LENGTH, serialise

_CODES = {
    400: "inference",  # Triton itself refused the request
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    413: "too-large",
    429: "too-many-waiting",
    500: "inference",
    502: "triton-unavailable",
    503: "model-unavailable",
    504: "triton-timeout",
}
"""The API's code for the same error, by status."""


def why_not(gateway: GatewayAddress | None, api_url: str, credentials: Credentials) -> str:
    """Return why a gateway cannot be used from here; empty if it can.

    Args:
        gateway: The gateway's address; None if there is none.
        api_url: The API's address.
        credentials: The credentials that would be sent to it.
    """
    if gateway is None:
        return "this control plane has no gateway"
    if not gateway.ready:
        return "the gateway is not ready: HAProxy is not running"
    if is_loopback(gateway.http_url):
        return "" if is_loopback(api_url) else f"the gateway listens at {gateway.http_url}, on another machine"
    if credentials.api_key and not gateway.tls:
        return f"the API key would be sent unencrypted to {gateway.http_url}"
    return ""


class GatewayClient(Connection):
    """A connection to a gateway; use it as a context manager.

    Args:
        url: The gateway's URL for HTTP.
        credentials: The credentials to send and the certificates to trust.
    """

    def ask(
        self,
        model: str,
        tensors: Sequence[dict[str, Any]],
        signature: Signature | None,
        *,
        version: int | None,
        timeout: float,
    ) -> dict[str, Any]:
        """Send an inference request and return the response in the form of the API's route, without the server's name.

        Raises:
            InvalidInputError: The inputs do not match the signature.
            ClientError: The gateway or Triton refused.
            NotRunningError: Nothing answers at the address; nothing was sent.
            WaitTimeoutError: There is no answer in time.
        """
        inputs = read_inputs([_input(tensor) for tensor in tensors], signature)
        path = f"/v2/models/{quote(model, safe='')}" + (f"/versions/{version}" if version is not None else "")
        end = time.monotonic() + timeout
        config: Config = {}
        if signature is None or _has_scalars(signature):
            config = self._call("GET", f"{path}/config", timeout).json()
        body, headers = _request(inputs, signature, config)
        began = time.monotonic()
        response = self._call("POST", f"{path}/infer", max(end - began, 0.001), content=body, headers=headers)
        seconds = time.monotonic() - began
        document, outputs = _answer(response, config)
        return {
            "model_name": document["model_name"],
            "model_version": document["model_version"],
            "id": document.get("id", ""),
            "seconds": seconds,
            "outputs": outputs,
        }

    def _call(self, method: str, path: str, seconds: float, **request: Any) -> httpx.Response:
        timeout = httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
        try:
            response = self._http.request(method, path, timeout=timeout, **request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NotRunningError(f"no gateway answers at {self.url}: {error}", url=self.url) from error
        except httpx.TimeoutException as error:
            message = f"no response from the gateway within {seconds:.3g} s; set a longer --timeout"
            raise WaitTimeoutError(message, url=self.url) from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ClientError(
                f"the gateway at {self.url} closed the connection: {reason}", code="triton-unavailable", status=502
            ) from error
        if response.is_error:
            raise _refusal(response)
        return response


def _input(tensor: dict[str, Any]) -> InputTensor:
    try:
        read = RequestTensor.model_validate(tensor)
    except ValidationError as error:
        raise InvalidInputError(f"an input is not a tensor of the v2 protocol: {invalid_field(error)}") from error
    return InputTensor(read.name, read.datatype, read.shape, read.data)


def _has_scalars(signature: Signature) -> bool:
    """Return whether a tensor may have a shape other than the signature's, which only the configuration shows."""
    least = 1 if signature.batched else 0
    return any(len(spec.shape) <= least for spec in (*signature.inputs, *signature.outputs))


def _entries(config: Config, kind: str) -> dict[str, Config]:
    return {str(spec["name"]): spec for spec in config.get(kind, ())}


def _request(inputs: Tensors, signature: Signature | None, config: Config) -> tuple[bytes, dict[str, str]]:
    specs = _entries(config, "input")
    # By name, since numpy has no type for BF16.
    datatypes = {name: data_type_of(str(spec["data_type"])) for name, spec in specs.items()}
    datatypes |= {spec.name: spec.dtype for spec in signature.inputs} if signature else {}
    described, parts = [], []
    for name, array in inputs.items():
        sent = to_wire(np.asarray(array), specs[name], config) if name in specs else np.asarray(array)
        datatype = datatypes.get(name) or DataType.of(sent)
        raw = serialise(sent, datatype)
        size = {"binary_data_size": len(raw)}
        described.append(
            {"name": name, "shape": list(sent.shape), "datatype": datatype.value, "parameters": size},
        )
        parts.append(raw)
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    headers = {HEAD_LENGTH: str(len(head)), "content-type": "application/octet-stream"}
    return b"".join([head, *parts]), headers


def _answer(response: httpx.Response, config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Parse the response into its JSON and the outputs in the API's form."""
    length = response.headers.get(HEAD_LENGTH)
    head = int(length) if length else None
    arrays = from_http(response.content, head)
    document: dict[str, Any] = json.loads(response.content[:head])
    specs, outputs = _entries(config, "output"), []
    for name, array in arrays.items():
        shaped = from_wire(array, specs[name], config) if name in specs else array
        datatype, data = from_array(shaped)
        outputs.append({"name": name, "datatype": datatype, "shape": list(shaped.shape), "data": data})
    return document, outputs


def _refusal(response: httpx.Response) -> ClientError:
    try:
        message = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the gateway answered {response.status_code} {response.reason_phrase}"
    return ClientError(message, code=_CODES.get(response.status_code, ""), status=response.status_code)
