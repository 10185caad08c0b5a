"""MLflow's REST API as far as it is needed to read models: https://mlflow.org/docs/latest/rest-api.html."""

import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit, urlunsplit

import httpx

from controlplane.errors import ForbiddenError, InvalidInputError, NotFoundError, UnauthenticatedError
from controlplane.sources.errors import SourceError, SourceUnavailableError

_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_CHUNK_BYTES = 1 << 20
_DEPTH_MAX = 16
_MISSING = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
_CREDENTIALS = "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


@dataclass(frozen=True, slots=True)
class MlflowConnection:
    """The address and the credentials of an MLflow server, from the variables that MLflow's own client reads.

    Attributes:
        url: The server's URL.
        token: A bearer token; never printed.
        user: User name and password; never printed.
        ca_file: Certificates to trust instead of the system's.
        client_cert: Certificate and key of the client, in one file.
        verify: Whether to verify the server's certificate.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    user: tuple[str, str] | None = field(default=None, repr=False)
    ca_file: str | None = None
    client_cert: str | None = None
    verify: bool = True

    @classmethod
    def read(cls, environment: Mapping[str, str], *, registry: bool = False) -> "MlflowConnection":
        """Read the variables.

        Args:
            environment: The variables.
            registry: Whether the model registry is asked, which may be another server.

        Raises:
            InvalidInputError: No server is named, or it is not one that is reached by HTTP.
        """
        name = "MLFLOW_REGISTRY_URI" if registry and environment.get("MLFLOW_REGISTRY_URI") else "MLFLOW_TRACKING_URI"
        url = environment.get(name, "")
        if not url:
            raise InvalidInputError(
                "the address of the MLflow server is unknown; set MLFLOW_TRACKING_URI, for example "
                "MLFLOW_TRACKING_URI=http://mlflow.example:5000"
            )
        if not url.startswith(("http://", "https://")):
            raise InvalidInputError(
                f"{name} begins with {url.partition(':')[0]!r}, but only MLflow servers with http:// or https:// can "
                "be read; start one (`mlflow server`), or run `mlflow artifacts download` and push the folder"
            )
        user = environment.get("MLFLOW_TRACKING_USERNAME", "")
        insecure = environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"true", "1"}
        return cls(
            url.rstrip("/"),
            environment.get("MLFLOW_TRACKING_TOKEN") or None,
            (user, environment.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None,
            environment.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None,
            environment.get("MLFLOW_TRACKING_CLIENT_CERT_PATH") or None,
            verify=not insecure,
        )

    def open(self, *, credentials: bool = True) -> httpx.Client:
        """Return an HTTP client, with or without the credentials.

        Raises:
            InvalidInputError: A certificate cannot be read.
        """
        context: ssl.SSLContext | bool = False
        try:
            if self.verify:
                context = ssl.create_default_context(cafile=self.ca_file)
                if self.client_cert:
                    context.load_cert_chain(self.client_cert)
        except (OSError, ssl.SSLError) as error:
            which = self.client_cert or self.ca_file
            raise InvalidInputError(f"{which} is not usable for TLS with MLflow: {error}") from error
        token = {"Authorization": f"Bearer {self.token}"} if credentials and self.token and not self.user else {}
        return httpx.Client(headers=token, auth=self.user if credentials else None, verify=context, timeout=_TIMEOUT)


class MlflowApi:
    """An open connection to an MLflow server; use it as a context manager."""

    def __init__(self, connection: MlflowConnection) -> None:
        self.url = public_url(connection.url)
        self._server = connection.url
        self._http = connection.open()
        # An answer can name another server for the files; the credentials are not for that one.
        self._other = connection.open(credentials=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._other.close()

    def version_by_alias(self, name: str, alias: str) -> dict[str, Any]:
        """Return the model version that an alias points to."""
        what = f"model {name!r} with the alias {alias!r}"
        answer = self._get("/registered-models/alias", what, name=name, alias=alias)
        return _object(answer, "model_version", self.url)

    def version(self, name: str, number: str) -> dict[str, Any]:
        """Return a model version."""
        answer = self._get("/model-versions/get", f"version {number} of a model {name!r}", name=name, version=number)
        return _object(answer, "model_version", self.url)

    def newest_version(self, name: str) -> dict[str, Any]:
        """Return the model version with the highest number."""
        quoted = name.replace("'", "\\'")
        found = self._get(
            "/model-versions/search",
            f"model {name!r}",
            filter=f"name='{quoted}'",
            order_by="version_number DESC",
            max_results="1",
        ).get("model_versions")
        if not found:
            raise NotFoundError(f"MLflow at {self.url} has no version of a model {name!r}")
        newest: dict[str, Any] = found[0]
        return newest

    def artifacts_of_version(self, name: str, number: str) -> str:
        """Return the URI of the files of a model version."""
        what = f"files of version {number} of {name!r}"
        answer = self._get("/model-versions/get-download-uri", what, name=name, version=number)
        return str(answer.get("artifact_uri", ""))

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a run."""
        return _object(self._get("/runs/get", f"run {run_id!r}", run_id=run_id), "run", self.url)

    def logged_model(self, model_id: str) -> dict[str, Any]:
        """Return a logged model of MLflow 3."""
        answer = self._get(f"/logged-models/{quote(model_id, safe='')}", f"logged model {model_id!r}")
        return _object(answer, "model", self.url)

    def logged_model_of_run(self, run: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        """Return the model that a run logged under a name; None if there is none, or the server is older than 3."""
        info = run.get("info", {})
        body: dict[str, Any] = {
            "experiment_ids": [info.get("experiment_id")],
            "filter": f"name = '{name.replace(chr(39), '')}'",
        }
        while True:
            try:
                page = self._call("POST", f"{_API}/logged-models/search", "logged models", json_body=body)
            except NotFoundError:
                return None
            for model in page.get("models", ()):
                if model.get("info", {}).get("source_run_id") == info.get("run_id"):
                    found: dict[str, Any] = model
                    return found
            if not page.get("next_page_token"):
                return None
            body["page_token"] = page["next_page_token"]

    def list_files(self, server: str | None, path: str, depth: int = 0) -> Iterator[str]:
        """Yield the paths of the files below a path of the artifact store, relative to it.

        Args:
            server: The artifact server's URL; None is the tracking server.
            path: A path of the artifact store.
            depth: How many folders are above; a server that answers with ever deeper ones is not followed.
        """
        if depth > _DEPTH_MAX:
            raise SourceError(f"MLflow at {self.url} lists folders more than {_DEPTH_MAX} levels deep")
        answer = self._call("GET", _ARTIFACTS, f"artifacts {path!r}", params={"path": path}, server=server)
        for entry in answer.get("files", ()):
            name = str(entry.get("path", "")).rstrip("/").rpartition("/")[2]
            if not entry.get("is_dir"):
                yield name
                continue
            for below in self.list_files(server, f"{path}/{name}", depth + 1):
                yield f"{name}/{below}"

    def download(self, server: str | None, path: str, target: Path) -> None:
        """Write a file of the artifact store to disk."""
        target.parent.mkdir(parents=True, exist_ok=True)
        http, base = self._to(server)
        try:
            with http.stream("GET", f"{base}{_ARTIFACTS}/{quote(path)}") as response, target.open("wb") as file:
                if not response.is_success:
                    response.read()
                    raise self._refused(response, f"artifact {path!r}")
                for chunk in response.iter_bytes(_CHUNK_BYTES):
                    file.write(chunk)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _to(self, server: str | None) -> tuple[httpx.Client, str]:
        if server is None or urlsplit(server)[:2] == urlsplit(self._server)[:2]:
            return self._http, server or self._server
        return self._other, server

    def _get(self, path: str, what: str, **params: str) -> dict[str, Any]:
        return self._call("GET", f"{_API}{path}", what, params=params)

    def _call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        params: Mapping[str, str] | None = None,
        json_body: Any = None,
        server: str | None = None,
    ) -> dict[str, Any]:
        http, base = self._to(server)
        try:
            response = http.request(method, f"{base}{path}", params=params, json=json_body)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise self._refused(response, what)
        try:
            document = response.json()
        except json.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise SourceError(f"{self.url} does not answer as an MLflow server does; check MLFLOW_TRACKING_URI")
        return document

    def _refused(self, response: httpx.Response, what: str) -> Exception:
        try:
            problem = response.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            problem = None
        code, message = "", ""
        if isinstance(problem, dict):
            code, message = str(problem.get("error_code", "")), str(problem.get("message", ""))[:300]
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return UnauthenticatedError(f"MLflow at {self.url} asks for credentials; set {_CREDENTIALS}")
        if response.status_code == httpx.codes.FORBIDDEN:
            return ForbiddenError(
                f"MLflow at {self.url} does not permit this user to read the {what}", needed="MLflow permission"
            )
        if response.status_code == httpx.codes.NOT_FOUND or code in _MISSING:
            reason = f": {message}" if message else ""
            return NotFoundError(f"MLflow at {self.url} has no {what}{reason}")
        return SourceError(
            f"MLflow at {self.url} answered with HTTP {response.status_code} when asked for the {what}"
            + (f": {message}" if message else "; check MLFLOW_TRACKING_URI")
        )

    def _unreachable(self, error: httpx.TransportError) -> SourceUnavailableError:
        reason = str(error) or type(error).__name__
        return SourceUnavailableError(
            f"MLflow at {self.url} is unreachable ({reason}); check MLFLOW_TRACKING_URI and that the server runs"
        )


def public_url(url: str) -> str:
    """Return a URL without user name, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _object(document: Mapping[str, Any], key: str, url: str) -> dict[str, Any]:
    found = document.get(key)
    if not isinstance(found, dict):
        raise SourceError(f"the answer of MLflow at {url} has no {key!r}; is it an MLflow server of version 2 or 3?")
    return found
