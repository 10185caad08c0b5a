"""The synchronous client."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from controlplane.cli.progress import follow
from controlplane.cli.references import fetch_version
from controlplane.cli.session import Session
from controlplane.cli.workflows import convert, infer, push
from controlplane.cli.workflows import deploy as changes
from controlplane.cli.workflows.sources import LocalArtifact, local_artifact
from controlplane.cli.workflows.tensors import from_protocol, to_protocol
from controlplane.client import http
from controlplane.client import models as documents
from controlplane.client.credentials import credentials
from controlplane.domain.arrays import Array
from controlplane.domain.names import Reference
from controlplane.errors import InvalidInputError
from converters.objects import SavedModel, save_object, to_array
from tritonctl.inputs import batches, request_arrays
from tritonctl.progress import Progress
from tritonctl.publishing import Options, Target, is_source, npz_file
from tritonctl.results import Comparison, Deployment, Metrics, Version

_SETTLE_SECONDS = 3600.0


def connect(
    url: str | None = None,
    *,
    data_dir: str | Path | None = None,
    api_key: str | None = None,
    api_key_file: str | Path | None = None,
    ca_file: str | Path | None = None,
    client_cert: str | Path | None = None,
    actor: str | None = None,
    progress: bool = True,
) -> "Client":
    """Connect to a control plane, found as ``tritonctl`` finds it.

    What is not given comes from the variables of the command line (``TRITONCTL_URL``, ``TRITONCTL_API_KEY``, …), and
    without a URL from the ``tritonctl up`` that runs on this machine.

    Args:
        url: The API's address, such as ``http://127.0.0.1:8090``.
        data_dir: The data folder of an ``up`` on this machine.
        api_key: The API key.
        api_key_file: A file with the API key.
        ca_file: Certificates (PEM) to trust instead of the system's.
        client_cert: Certificate and private key of this client (PEM, one file).
        actor: Your name in the history; default ``user@host``.
        progress: Whether long calls show their progress.

    Raises:
        NotRunningError: There is no URL, and no ``up`` runs on this machine.
        InvalidInputError: A file cannot be read.
    """

    def path(given: str | Path | None, variable: str) -> Path | None:
        found = given or os.environ.get(variable)
        return Path(found) if found else None

    session = Session(
        url=url or (None if data_dir else os.environ.get("TRITONCTL_URL")),
        data_dir=path(data_dir, "TRITONCTL_DATA_DIR") or path(None, "CONTROLPLANE_DATA_DIR"),
        api_key_file=path(api_key_file, "TRITONCTL_API_KEY_FILE"),
        ca_file=path(ca_file, "TRITONCTL_CA_FILE"),
        client_cert=path(client_cert, "TRITONCTL_CLIENT_CERT"),
        actor=actor or os.environ.get("TRITONCTL_ACTOR"),
    )
    address = session.find_url()
    given = credentials(session, address)
    if api_key is not None:
        given = replace(given, api_key=api_key)
    connection = http.Client(address, actor=session.actor, credentials=given)
    return Client(connection, data_dir=session.folder(), progress=progress)


class Client:
    """A connection to one control plane. It can be used as a context manager, and by several threads.

    Args:
        connection: The client of the REST API.
        data_dir: A folder for what is needed to resume interrupted uploads.
        progress: Whether long calls show their progress.
    """

    def __init__(self, connection: http.Client, *, data_dir: Path, progress: bool = True) -> None:
        self.connection = connection
        self._data_dir = data_dir
        self._progress = progress

    @property
    def url(self) -> str:
        """The API's address."""
        return self.connection.url

    def close(self) -> None:
        """Close the connection."""
        self.connection.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<tritonctl client of {self.url}>"

    def push(
        self,
        model: object,
        name: str | None = None,
        example_inputs: object = None,
        *,
        target: Target = "onnx",
        aliases: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        reason: str = "",
        trust: bool = False,
        timeout: float | None = None,
    ) -> Version:
        """Publish a model as a new version, converted where Triton could not run it otherwise.

        An object is written to a file in this process: a PyTorch module with ``torch.export``, a scikit-learn
        estimator with skops. The control plane converts the file and compares the answers of the result with those of
        the original on the example inputs; `Version.parity` has the errors.

        Args:
            model: A ``torch.nn.Module``, a scripted or exported module, a scikit-learn estimator, an ONNX
                ``ModelProto``, a booster of XGBoost or LightGBM, a path, or a URI as of ``tritonctl push``.
            name: The model's name; for a path or URI, default: the file's name.
            example_inputs: An array, a tuple of arrays in the order of the arguments, or a mapping by name; tensors
                and data frames too. The first dimension is the batch: ``[rows, …]``. A PyTorch module needs them;
                for others they replace generated samples.
            target: What a model is converted to that Triton does not run.
            aliases: Aliases to point to the new version.
            labels: Labels of the version.
            metrics: Metrics of the version, for example ``{"top1": 0.76}``.
            reason: Recorded in the history.
            trust: Allow code in a file (pickle) to run in the control plane.
            timeout: Maximum seconds for a conversion.

        Raises:
            InvalidInputError: The object, the examples or the name are not valid.
            ConversionFailedError: The model cannot be converted; `ParityError` if the result computes something else.
            WaitTimeoutError: The conversion takes longer; it continues.
        """
        options = Options(
            target,
            tuple(aliases),
            dict(labels or {}),
            {key: float(value) for key, value in (metrics or {}).items()},
            reason,
            trust,
            timeout,
        )
        with tempfile.TemporaryDirectory(prefix="tritonctl-") as folder:
            if isinstance(model, str | os.PathLike):
                return self._push_path(os.fspath(model), name, example_inputs, options, Path(folder))
            if name is None:
                raise InvalidInputError("give the model's name: client.push(model, 'name', example_inputs)")
            files = Path(folder) / "model"
            files.mkdir()
            saved = save_object(model, example_inputs, files)
            return self._push_saved(saved, name, options, Path(folder))

    def version(self, reference: str) -> Version:
        """Return a version: ``name`` (the newest), ``name:7`` or ``name@alias``.

        Raises:
            NotFoundError: There is no such version.
        """
        detail = fetch_version(self.connection, reference)
        entry = detail.entry
        return Version(detail.model, entry.number, detail.manifest, detail.aliases, entry.published_at, _client=self)

    def models(self) -> list[documents.Model]:
        """Return all models with their versions and aliases."""
        return [self.connection.read(documents.Model, one) for one in self.connection.items("/v1/models")]

    def deployments(self) -> list[Deployment]:
        """Return all deployments."""
        items = self.connection.items("/v1/deployments", limit=1000)
        return [Deployment(self.connection.read(documents.Deployment, one), self) for one in items]

    def deployment(self, model: str) -> Deployment:
        """Return the deployment of a model.

        Raises:
            NotFoundError: The model is not deployed.
        """
        return Deployment(self.connection.fetch(documents.Deployment, changes.deployment_path(model)), self)

    def deploy(
        self,
        version: str | Version,
        *,
        settings: Mapping[str, Any] | None = None,
        reason: str = "",
    ) -> Deployment:
        """Deploy a version: it is loaded, proved with its golden samples, and made active. Use `wait` on the result.

        Args:
            version: A `Version` or a reference.
            settings: Settings as in the API (``mode``, ``instance_count``, ``max_batch_size``, ``min_replicas``,
                ``rollout``, …); others keep their value.
            reason: Recorded in the history.

        Raises:
            NotFoundError: There is no such version.
            InvalidConfigError: The settings contradict the signature or each other.
        """
        model = Reference.parse(str(version)).model
        merged = changes.merged_settings(self.connection, model, dict(settings or {}))
        body = {"reference": str(version), "settings": merged, "reason": reason}
        return self._change(model, changes.Change("PUT", body=body))

    def rollback(self, model: str, *, revision: int | None = None, reason: str = "") -> Deployment:
        """Roll a deployment back, and wait until the earlier version is active: milliseconds while it is loaded.

        Args:
            model: The model.
            revision: The revision to restore; default: the previous one.
            reason: Recorded in the history.

        Raises:
            ConflictError: There is no earlier revision.
            OperationFailedError: The version did not become active.
        """
        body = {"reason": reason} | ({"revision": revision} if revision is not None else {})
        return self.wait(self._change(model, changes.Change("POST", "/rollback", body=body)))

    def undeploy(self, model: str, *, reason: str = "") -> Deployment:
        """Unload a model and remove its deployment. Use `wait` on the result."""
        return self._change(model, changes.Change("DELETE", params={"reason": reason}))

    def wait(self, deployment: str | Deployment, timeout: float | None = None) -> Deployment:
        """Wait until a deployment's change is complete, a rollout's steps included.

        Args:
            deployment: The deployment, or the model's name.
            timeout: Maximum seconds; None waits an hour.

        Raises:
            OperationFailedError: It settled in another state than requested; the message says why.
            WaitTimeoutError: It takes longer; it continues.
        """
        model = deployment if isinstance(deployment, str) else deployment.model
        document = None if isinstance(deployment, str) else deployment.document
        out = self._out()
        if document is not None and document.operation_id is not None:
            operation = documents.Operation(id=document.operation_id, kind="deploy", subject=model, state="pending")
            follow(self.connection, operation, out, timeout=timeout)
            if document.spec.deleted:
                return Deployment(document, self)
        found = self.deployment(model).document
        if found.spec.trial is not None:
            found = changes.wait_for_rollout(self.connection, out, found, timeout)
        elif document is None or document.operation_id is None:
            found = changes.wait_for(self.connection, out, model, _SETTLE_SECONDS if timeout is None else timeout)
        changes.require_ready(found)
        return Deployment(found, self)

    def infer(
        self,
        model: str,
        inputs: object,
        *,
        version: int | None = None,
        timeout: float = 60.0,
        via: Literal["auto", "gateway", "api"] = "auto",
    ) -> dict[str, Array]:
        """Send inputs to a deployed model and return the outputs by name.

        More rows than the deployment's maximum batch size are sent in several requests, one after another.

        Args:
            model: A deployed model.
            inputs: A mapping from the inputs' names to arrays (tensors, lists) of the signature's shapes; or one array
                for a model with one input. Numbers are converted to the signature's type where no value is lost in
                kind (integers to floats, not floats to integers).
            version: A loaded version; default: the active one.
            timeout: Maximum seconds of one request, a load of an on-demand model included.
            via: The way: through the gateway or the API; ``auto`` prefers the gateway.

        Raises:
            InvalidInputError: Names, shapes or types do not fit the signature.
            NotFoundError: The model is not deployed.
            InferenceError: Triton refused or failed the request.
        """
        deployment = self.deployment(model).document
        number = version
        if number is None:
            number = infer.deployed(self.connection, model).version
        signature = self.version(f"{model}:{number}").signature
        arrays = request_arrays(inputs, signature, model)
        batched = signature is not None and signature.batched
        answers = []
        for part in batches(arrays, deployment.spec.settings.max_batch_size) if batched else [arrays]:
            tensors = [to_protocol(name, array) for name, array in part.items()]
            request = infer.Request(deployment, tensors, signature, version, timeout)
            answer = infer.ask(self.connection, request, infer.Via(via))
            answers.append({tensor["name"]: from_protocol(tensor) for tensor in answer["outputs"]})
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}

    def compare(self, a: str | Version, b: str | Version, inputs: object = None) -> Comparison:
        """Compare two versions: format, size, signature, metrics, parity; with inputs also their answers.

        Args:
            a: The first version, as a reference or `Version`.
            b: The second version.
            inputs: As of `infer`; both versions must be loaded (for example in the bake window after a deploy).

        Raises:
            NotFoundError: There is no such version.
        """
        first, second = (one if isinstance(one, Version) else self.version(one) for one in (a, b))
        if inputs is None:
            return Comparison(first, second)
        answers = [self.infer(one.model, inputs, version=one.number, via="api") for one in (first, second)]
        both = {name: (value, answers[1][name]) for name, value in answers[0].items() if name in answers[1]}
        return Comparison(first, second, both)

    def metrics(self, model: str, window: str = "5m") -> Metrics:
        """Return the metrics of a deployed model in a window up to now, for example ``30s``, ``5m`` or ``1h``.

        Raises:
            NotFoundError: The model is not deployed.
        """
        return self.connection.fetch(Metrics, f"{changes.deployment_path(model)}/metrics", window=window)

    def _out(self) -> Progress:
        return Progress(shown=self._progress)

    def _change(self, model: str, change: changes.Change) -> Deployment:
        document, _ = changes.apply(self.connection, self._out(), model, change, wait=False)
        return Deployment(document, self)

    def _push_path(self, what: str, name: str | None, examples: object, options: Options, folder: Path) -> Version:
        out = self._out()
        with local_artifact(what, self._data_dir, out) as local:
            model = name or push.model_name(local.name)
            number = push.version_folder(local.path, None)
            samples = None
            if examples is not None:
                if not isinstance(examples, Mapping):
                    raise InvalidInputError("for a path, give example_inputs as a mapping from names to arrays")
                samples = {str(key): to_array(value) for key, value in examples.items()}
            return self._publish(local, model, samples, options, folder, converts=is_source(local.path), number=number)

    def _push_saved(self, saved: SavedModel, name: str, options: Options, folder: Path) -> Version:
        local = LocalArtifact(saved.path, saved.path, None, saved.inputs)
        return self._publish(local, name, saved.samples, options, folder, converts=not saved.format.runs)

    def _publish(
        self,
        local: LocalArtifact,
        name: str,
        samples: Mapping[str, Array] | None,
        options: Options,
        folder: Path,
        *,
        converts: bool,
        number: int | None = None,
    ) -> Version:
        with npz_file(samples, folder) as file:
            if converts:
                result = convert.convert_and_publish(
                    self.connection,
                    name,
                    local,
                    options.conversion(name, file),
                    self._data_dir,
                    self._out(),
                    timeout=options.timeout,
                )
            else:
                given = replace(options.publication(file), origin=local.origin, version_folder=number)
                result = push.publish(self.connection, name, local.path, given, self._data_dir, self._out())
        notes = [*(result.get("warnings") or ()), result.get("unservable"), result.get("missing")]
        return replace(self.version(result["reference"]), warnings=tuple(str(one) for one in notes if one))
