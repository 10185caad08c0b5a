"""The target ``tritonctl`` of ``mlflow deployments``: MLflow's plug-in interface over the client of the control plane.

MLflow loads this module through the entry point ``mlflow.deployments``. It does what the commands `push`, `convert`,
`deploy`, `undeploy` and `infer` do, with the same environment variables.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from controlplane.cli.exit_codes import ExitCode, exit_code
from controlplane.cli.output import Output
from controlplane.cli.references import fetch_version
from controlplane.cli.session import Session
from controlplane.cli.workflows import infer
from controlplane.cli.workflows.convert import Conversion, convert_and_publish
from controlplane.cli.workflows.deploy import (
    Change,
    apply,
    deployment_path,
    merged_settings,
    present_deployment,
    wait_for_rollout,
)
from controlplane.cli.workflows.push import PublishOptions, publish
from controlplane.cli.workflows.tensors import from_protocol, to_protocol
from controlplane.client.http import Client
from controlplane.client.models import Deployment
from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format, Manifest, Origin
from controlplane.domain.names import Reference, validate_model_name
from controlplane.domain.signature import DataType, TensorSpec
from controlplane.errors import AlreadyExistsError, ControlPlaneError, InvalidInputError, NotFoundError
from controlplane.sources.base import SourceArtifact
from controlplane.sources.registry import find_source, recognize

_HELP = """Deploys MLflow models on NVIDIA Triton through the control plane tritonctl.

Target: 'tritonctl' for the control plane of TRITONCTL_URL, or else of the `tritonctl up` on this machine;
'tritonctl://HOST:PORT' for another one over HTTP. Credentials: TRITONCTL_API_KEY, as for the command tritonctl.

Flavors: onnx, xgboost, lightgbm, pytorch, sklearn. Models other than ONNX are converted to ONNX, and the result is
compared with the original. The deployment's name is that of the model in the control plane.

Config (-C NAME=VALUE): trust=true runs code that the model contains (pickles). Every other name is a setting of the
deployment, for example mode=on-demand, min_replicas=2 or dynamic_batching={"max_queue_delay_microseconds":100}; values
are JSON or text."""
_TRUST = "trust"
_FLAVORS = {Format.TORCHSCRIPT: "pytorch", Format.TORCH_EXPORT: "pytorch"}
"""Flavor by format, where their names differ."""
_CODES = {
    ExitCode.NOT_FOUND: codes.RESOURCE_DOES_NOT_EXIST,
    ExitCode.UNREACHABLE: codes.TEMPORARILY_UNAVAILABLE,
    ExitCode.CONFLICT: codes.RESOURCE_CONFLICT,
    ExitCode.INVALID: codes.INVALID_PARAMETER_VALUE,
    ExitCode.TIMEOUT: codes.DEADLINE_EXCEEDED,
    ExitCode.DENIED: codes.PERMISSION_DENIED,
}
_PREDICT_SECONDS = 60.0
_DEFAULT_BATCH = 8
"""The batch size of a deployment that sets none."""


def target_help() -> str:
    """Return the help of ``mlflow deployments help -t tritonctl``."""
    return _HELP


def run_local(target: str, name: str, model_uri: str, flavor: str | None = None, config: Any = None) -> None:  # noqa: ARG001 - MLflow's interface
    """Refuse: a local control plane is a program of its own."""
    raise MlflowException(
        "run-local is not supported; start a control plane on this machine with `tritonctl up`, and use `mlflow "
        f"deployments create -t tritonctl --name {name} -m {model_uri}`",
        codes.NOT_IMPLEMENTED,
    )


class TritonctlDeploymentClient(BaseDeploymentClient):  # type: ignore[misc] # MLflow may be missing when types are checked
    """Deployments of a control plane; see `_HELP`."""

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Publish a model, deploy it, and wait until it is ready."""
        with self._connected(endpoint) as client:
            validate_model_name(name)
            if present_deployment(client, name) is not None:
                raise AlreadyExistsError(f"{name} is deployed already; use update")
            return _deploy(client, name, model_uri, flavor, config)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Deploy another version or other settings, and wait until they are active."""
        with self._connected(endpoint) as client:
            client.fetch(Deployment, deployment_path(name))
            return _deploy(client, name, model_uri, flavor, config)

    def delete_deployment(
        self,
        name: str,
        config: Mapping[str, Any] | None = None,  # noqa: ARG002 - MLflow's interface
        endpoint: str | None = None,
    ) -> None:
        """Undeploy a model, and wait until it is unloaded; its published versions stay."""
        with self._connected(endpoint) as client:
            if present_deployment(client, name) is not None:
                apply(client, _quiet(), name, Change("DELETE"), wait=True)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Return all deployments."""
        with self._connected(endpoint) as client:
            return [_described(client.read(Deployment, item)) for item in client.items("/v1/deployments")]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Return a deployment, with the origin of its version."""
        with self._connected(endpoint) as client:
            deployment = client.fetch(Deployment, deployment_path(name))
            lineage = fetch_version(client, Reference(name, version=deployment.spec.version)).manifest.lineage
            origin = lineage.origin.model_dump(mode="json", exclude_none=True) if lineage and lineage.origin else None
            return {
                **_described(deployment),
                "origin": origin,
                "settings": deployment.spec.settings.model_dump(mode="json"),
            }

    def predict(self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None) -> Any:
        """Return the answers for a data frame, an array, or a mapping of arrays by input.

        Columns that are named like the inputs of the model are sent as these; other data goes to the only input. More
        rows than the deployment's largest batch are sent in several requests.
        """
        with self._connected(endpoint) as client:
            if deployment_name is None:
                raise InvalidInputError("no deployment is named; give --name")
            deployment = client.fetch(Deployment, deployment_path(deployment_name))
            manifest = fetch_version(client, infer.deployed(client, deployment_name)).manifest
            given = dict(_arrays(inputs, manifest.signature.inputs if manifest.signature else ()))
            answers: dict[str, list[Array]] = {}
            for part in _parts(given, _limit(deployment, manifest)):
                tensors = [to_protocol(*pair) for pair in part.items()]
                request = infer.Request(deployment, tensors, manifest.signature, None, _PREDICT_SECONDS)
                for one in infer.ask(client, request, infer.Via.AUTO)["outputs"]:
                    answers.setdefault(one["name"], []).append(from_protocol(one))
            outputs = {name: _listed(np.concatenate(parts)) for name, parts in answers.items()}
            return PredictionsResponse({"predictions": next(iter(outputs.values())) if len(outputs) == 1 else outputs})

    @contextmanager
    def _connected(self, endpoint: str | None) -> Iterator[Client]:
        try:
            if endpoint is not None:
                raise InvalidInputError(f"the target has no endpoints; omit --endpoint {endpoint}")
            with _session(self.target_uri).client() as client:
                yield client
        except ControlPlaneError as error:
            exists = isinstance(error, AlreadyExistsError)
            code = codes.RESOURCE_ALREADY_EXISTS if exists else _CODES.get(exit_code(error), codes.INTERNAL_ERROR)
            raise MlflowException(str(error), code) from error


def _session(target_uri: str) -> Session:
    """Return the session of a target, from the variables that the commands read as well."""

    def path(name: str) -> Path | None:
        return Path(os.environ[name]) if os.environ.get(name) else None

    address = target_uri.partition(":")[2].lstrip("/")
    return Session(
        url=f"http://{address}" if address else os.environ.get("TRITONCTL_URL") or None,
        data_dir=path("TRITONCTL_DATA_DIR") or path("CONTROLPLANE_DATA_DIR"),
        actor=os.environ.get("TRITONCTL_ACTOR") or None,
        api_key_file=path("TRITONCTL_API_KEY_FILE"),
        ca_file=path("TRITONCTL_CA_FILE"),
        client_cert=path("TRITONCTL_CLIENT_CERT"),
    )


def _quiet() -> Output:
    return Output("json")


def _deploy(
    client: Client, name: str, model_uri: str | None, flavor: str | None, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    given = {key: _value(value) for key, value in (config or {}).items()}
    trust = given.pop(_TRUST, False) is True
    if model_uri is not None:
        reference, flavor = _publish(client, name, model_uri, flavor, trust=trust)
    else:
        reference = str(Reference(name, version=client.fetch(Deployment, deployment_path(name)).spec.version))
    settings = merged_settings(client, name, given)
    body = {"reference": reference, "reason": "mlflow deployments"} | ({"settings": settings} if settings else {})
    deployment, _ = apply(client, _quiet(), name, Change("PUT", body=body), wait=True)
    if deployment.spec.trial is not None:
        deployment = wait_for_rollout(client, _quiet(), deployment, None)
    return {**_described(deployment), "flavor": flavor}


def _publish(client: Client, name: str, model_uri: str, flavor: str | None, *, trust: bool) -> tuple[str, str]:
    """Publish a model of MLflow, and convert it if Triton does not run it; return the version and the flavor."""
    out = _quiet()
    with tempfile.TemporaryDirectory(prefix="tritonctl-mlflow-") as folder:
        artifact = _fetched(model_uri, Path(folder))
        work = Path(folder) / "data"
        options = PublishOptions(origin=artifact.origin, trust=trust, reason="mlflow deployments")
        reference = str(publish(client, name, artifact.path, options, work, out)["reference"])
        found = fetch_version(client, reference).manifest.format
        if flavor is not None and flavor != _FLAVORS.get(found, found.value):
            raise InvalidInputError(
                f"{model_uri} is published as {found.value}, not with the flavor {flavor!r}; omit --flavor"
            )
        if not found.runs:
            inputs = {"inputs": [spec.model_dump(mode="json") for spec in artifact.inputs]} if artifact.inputs else {}
            conversion = Conversion("onnx", {"target": "onnx", "trust": trust, **inputs}, model=name)
            converted = convert_and_publish(client, reference, None, conversion, work, out, timeout=None)
            reference = str(converted["reference"])
    return reference, _FLAVORS.get(found, found.value)


def _fetched(model_uri: str, folder: Path) -> SourceArtifact:
    """Fetch a model from MLflow's server, or with MLflow's own client from another place."""
    uri = f"mlflow://{model_uri}"
    tracking = str(mlflow.get_tracking_uri())
    if tracking.startswith(("http://", "https://")) and model_uri.startswith(("models:/", "runs:/")):
        registry = str(mlflow.get_registry_uri())
        variables = {**os.environ, "MLFLOW_TRACKING_URI": tracking, "MLFLOW_REGISTRY_URI": registry}
        return find_source(uri).fetch(uri, folder, variables, lambda _: None)
    path = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=str(folder)))
    artifact = recognize(path)
    if artifact is None:
        raise NotFoundError(f"{model_uri} is not a model of MLflow: it has no file MLmodel")
    named = artifact.origin.uri if Path(model_uri).exists() else uri
    origin = Origin.model_validate({**artifact.origin.model_dump(), "uri": named})
    return SourceArtifact(artifact.path, artifact.name, origin, artifact.inputs)


def _value(text: Any) -> Any:
    """Parse a value of ``-C NAME=VALUE``: JSON, or else text."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _described(deployment: Deployment) -> dict[str, Any]:
    status = deployment.status
    return {
        "name": deployment.model,
        "version": deployment.spec.version,
        "phase": status.phase.value if status else "Pending",
        "message": status.message if status else "",
    }


def _limit(deployment: Deployment, manifest: Manifest) -> int:
    """Return how many rows a request may have; 0 if there is no limit."""
    if manifest.signature is None or not manifest.signature.batched:
        return 0
    given = deployment.spec.settings.max_batch_size
    author = (manifest.config or {}).get("max_batch_size")
    return next((size for size in (given, author) if isinstance(size, int) and size), _DEFAULT_BATCH)


def _parts(given: Mapping[str, Array], rows: int) -> Iterator[Mapping[str, Array]]:
    count = max((len(array) for array in given.values() if array.ndim), default=0)
    if not rows or count <= rows:
        yield given
        return
    for first in range(0, count, rows):
        yield {name: array[first : first + rows] for name, array in given.items()}


def _arrays(inputs: Any, specs: tuple[TensorSpec, ...]) -> Iterator[tuple[str, Array]]:
    names = {spec.name for spec in specs}
    if hasattr(inputs, "columns"):  # a data frame
        columns = {str(column): np.array(inputs[column].tolist()) for column in inputs.columns}
        inputs = columns if columns.keys() <= names else inputs.to_numpy()
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise InvalidInputError(
                f"the model has the inputs {', '.join(sorted(names)) or '(unknown)'}; give a mapping or a data "
                "frame with these names"
            )
        inputs = {specs[0].name: inputs}
    if unknown := sorted(set(map(str, inputs)) - names):
        raise InvalidInputError(f"the model has no input {unknown[0]!r}; its inputs are {', '.join(sorted(names))}")
    for spec in specs:
        if spec.name in inputs:
            array = np.asarray(inputs[spec.name])
            if array.ndim == 1 and len(spec.shape) == 2:
                array = array.reshape(-1, 1)  # a column
            yield spec.name, array.astype(object if spec.dtype is DataType.BYTES else spec.dtype.numpy)


def _listed(array: Array) -> Any:
    return [_listed(one) for one in array] if array.ndim > 1 else [_text(one) for one in array.reshape(-1).tolist()]


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
