"""`adopt`: publishes a model that a server runs without a deployment, and deploys it."""

from pathlib import Path

from controlplane.cli.output import Output
from controlplane.cli.workflows.deploy import deploy_and_wait
from controlplane.cli.workflows.import_sources import LocalModel
from controlplane.cli.workflows.importing import import_repository
from controlplane.cli.workflows.push import PublishOptions
from controlplane.client.errors import ClientError, OperationFailedError
from controlplane.client.http import Client, segment
from controlplane.domain.names import validate_model_name
from controlplane.errors import ConflictError, InvalidInputError, NotFoundError

_READY = "READY"


def adopt(
    client: Client,
    name: str,
    repository: Path,
    server: str | None,
    options: PublishOptions,
    data_dir: Path,
    out: Output,
) -> None:
    """Publish the loaded versions of an unmanaged model from its files, and deploy the one that answers.

    Args:
        client: The control plane.
        name: The model.
        repository: The server's model repository on this machine.
        server: The server; None for the only one that has loaded the model.
        options: Options of the publication.
        data_dir: The folder of local state.
        out: Shows the progress.

    Raises:
        NotFoundError: No server has loaded the model.
        ConflictError: It is deployed already.
        InvalidInputError: Several servers have loaded it, and none is chosen.
        OperationFailedError: A version was refused, or the deployment failed.
    """
    validate_model_name(name)
    _require_unmanaged(client, name)
    versions = _loaded(client, name, server)
    model = LocalModel(repository / name, frozenset(versions))
    rows = import_repository(client, [model], str(repository), options, data_dir, out, dry_run=False)
    for row in rows:
        if row.result == "refused":
            raise OperationFailedError(f"{name} cannot be adopted: {row.message}")
    newest = max(rows, key=lambda row: row.folder or 0)
    out.note(f"the version {newest.folder} that answers is {name}:{newest.version}")
    deploy_and_wait(client, out, f"{name}:{newest.version}", reason=options.reason or "adopt")


def _require_unmanaged(client: Client, name: str) -> None:
    try:
        client.get(f"/v1/deployments/{segment(name)}")
    except ClientError as error:
        if error.code != "not-found":
            raise
    else:
        raise ConflictError(f"{name} is deployed already, so the control plane manages it")


def _loaded(client: Client, name: str, server: str | None) -> set[int]:
    found: dict[str, set[int]] = {}
    for status in client.items("/v1/servers"):
        if server in {None, status["name"]}:
            for one in status["models"]:
                if one["model"] == name and one["state"] == _READY:
                    found.setdefault(status["name"], set()).add(int(one["version"]))
    if not found:
        where = f"the server {server}" if server else "no server"
        raise NotFoundError(
            f"{where} has {'not ' if server else ''}loaded {name}; `tritonctl servers` lists the models"
        )
    if len(found) > 1:
        raise InvalidInputError(f"{name} is loaded on {', '.join(sorted(found))}; choose one with --server")
    return next(iter(found.values()))
