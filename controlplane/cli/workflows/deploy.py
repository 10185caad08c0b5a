"""Changes of a deployment: send one, follow its stages, and report its result and duration."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.cli.output import Output, span
from controlplane.cli.progress import follow, waiting
from controlplane.client.errors import ClientError, OperationFailedError, WaitTimeoutError
from controlplane.client.http import Client, segment
from controlplane.client.models import Deployment, Operation
from controlplane.domain.conditions import Awaited
from controlplane.domain.deployment import Mode
from controlplane.domain.names import Reference
from controlplane.domain.rollout.strategy import StrategyKind
from controlplane.domain.states import Phase

_ACCEPTED = 202
_LONGEST_WAIT_SECONDS = 600.0
"""The longest wait that the API accepts for one request."""
_LONGEST_LOOK_SECONDS = 30.0
"""The longest wait for a condition in one request, so that no proxy closes the silent connection."""
_ROLLOUT_LOOK_SECONDS = 1.0
_SHORTEST_WAIT_SECONDS = 0.001
"""0 would not wait at all, and would not report a failure."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a deployment.

    Attributes:
        method: HTTP method.
        path: Path after ``/v1/deployments/{model}``.
        body: The request's JSON.
        params: The query.
    """

    method: str
    path: str = ""
    body: Any = None
    params: Mapping[str, Any] | None = None


def deployment_path(model: str) -> str:
    """Return the API's path of a deployment."""
    return f"/v1/deployments/{segment(model)}"


def apply(
    client: Client, out: Output, model: str, change: Change, *, wait: bool, timeout: float | None = None
) -> tuple[Deployment, float]:
    """Send a change; with ``wait``, follow it to its end. Return the deployment and the seconds it took.

    Raises:
        OperationFailedError: It settled in another state than requested; the message says why.
        WaitTimeoutError: It takes longer than ``timeout``; it continues.
    """
    path = deployment_path(model)
    started = time.monotonic()
    response = client.call(change.method, path + change.path, body=change.body, params=dict(change.params or {}))
    deployment = client.read(Deployment, response.json())
    if not wait or deployment.operation_id is None:
        return deployment, time.monotonic() - started
    operation = Operation(id=deployment.operation_id, kind="deploy", subject=model, state="pending")
    follow(client, operation, out, timeout=timeout)
    seconds = time.monotonic() - started
    try:
        deployment = client.fetch(Deployment, path).model_copy(update={"changed": deployment.changed})
    except ClientError as error:
        if error.status == 404:  # after an undeploy there is nothing to fetch
            return deployment, seconds
        raise
    require_ready(deployment)
    return deployment, seconds


def shortfall(deployment: Deployment) -> str | None:
    """Return what a settled deployment lacks to be Ready as desired; None if nothing is missing.

    An on-demand model need not be loaded before its first use, and an unloaded one is desired to be so.
    """
    spec, status = deployment.spec, deployment.status
    if status is None or spec.deleted or not spec.loaded:
        return None
    if status.phase is Phase.UNLOADED:
        if spec.settings.mode is Mode.ON_DEMAND:
            return None
        why = next((one.why for one in deployment.memory if one.state not in {"loaded", "assigned-elsewhere"}), "")
        return f"{deployment.model}:{spec.version} is deployed but not loaded: {why or status.message}"
    ready = sum(server.phase is Phase.READY for server in status.servers)
    if status.phase is Phase.READY and ready < spec.settings.min_replicas:
        return (
            f"{deployment.model}:{spec.version} is ready with {ready} of {spec.settings.min_replicas} replicas: "
            f"{status.message}"
        )
    return None


def require_ready(deployment: Deployment) -> None:
    """Refuse a settled deployment that is not Ready as desired.

    Raises:
        OperationFailedError: Something is missing; the message says what.
    """
    if (lacking := shortfall(deployment)) is not None:
        raise OperationFailedError(lacking, code="not-ready")


def wait_for_rollout(client: Client, out: Output, deployment: Deployment, timeout: float | None) -> Deployment:
    """Wait until a rollout ends, or until a version that is promoted manually is ready beside the old one.

    Raises:
        OperationFailedError: The new version was withdrawn.
        WaitTimeoutError: It takes longer than ``timeout`` seconds; it continues.
    """
    from controlplane.cli.views.rollout import watch
    from controlplane.client.rollouts import Rollout

    path = f"/v1/rollouts/{segment(deployment.model)}"
    by_hand = deployment.spec.trial is not None and deployment.spec.trial.strategy.kind is StrategyKind.MANUAL
    found = watch(
        lambda: client.fetch(Rollout, path),
        out,
        interval=_ROLLOUT_LOOK_SECONDS,
        until=lambda rollout: rollout.ended or (by_hand and rollout.ready),
        timeout=timeout,
    )
    if found.phase == "aborted":
        raise OperationFailedError(
            f"{found.model}:{found.new.version} was withdrawn: {found.message}", code="rollout-aborted"
        )
    return client.fetch(Deployment, deployment_path(deployment.model))


def deploy_and_wait(client: Client, out: Output, reference: str, *, reason: str = "") -> None:
    """Deploy a version with its previous settings, and wait until it is active."""
    model = Reference.parse(reference).model
    change = Change("PUT", body={"reference": reference, "reason": reason})
    deployment, seconds = apply(client, out, model, change, wait=True)
    if deployment.spec.trial is not None:
        deployment = wait_for_rollout(client, out, deployment, None)
    out.result(deployment)
    show_ready(out, deployment, seconds)


def load_and_wait(
    client: Client, out: Output, model: str, *, reason: str, wait: bool, timeout: float | None
) -> tuple[Deployment, float]:
    """Request the load of a model, and wait for it with ``wait``. Return the deployment and the seconds it took.

    Raises:
        ClientError: It cannot be loaded; the message has the figures.
        WaitTimeoutError: It takes longer than ``timeout``; it continues.
    """
    started = time.monotonic()
    path, body = f"{deployment_path(model)}/load", {"reason": reason}
    if not wait:
        return client.read(Deployment, client.post(path, body)), time.monotonic() - started
    with waiting(out, f"loading {model}"):
        while True:
            spent = time.monotonic() - started
            left = _LONGEST_WAIT_SECONDS if timeout is None else min(timeout - spent, _LONGEST_WAIT_SECONDS)
            seconds = max(left, _SHORTEST_WAIT_SECONDS)
            response = client.call("POST", path, body=body, params={"wait": seconds}, read_seconds=seconds + 30)
            deployment = client.read(Deployment, response.json())
            spent = time.monotonic() - started
            if response.status_code != _ACCEPTED:
                return deployment, spent
            if timeout is not None and spent >= timeout:
                how = deployment.status.message if deployment.status else "no state is known yet"
                raise WaitTimeoutError(
                    f"{model} is not ready after {timeout:g} s: {how}; the load continues", model=model
                )


def present_deployment(client: Client, model: str) -> Deployment | None:
    """Return the deployment of a model; None if it is not deployed."""
    try:
        return client.fetch(Deployment, deployment_path(model))
    except ClientError as error:
        if error.status != 404:
            raise
        return None


def merged_settings(client: Client, model: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """Merge the given settings into those of the present deployment; None if none are given."""
    if not given:
        return None
    deployment = present_deployment(client, model)
    present = {} if deployment is None else deployment.spec.settings.model_dump(mode="json")
    if "rollout" in given:
        # Options of the strategy that are not given are unchanged, too.
        given = {**given, "rollout": {**present.get("rollout", {}), **given["rollout"]}}
    merged = {**present, "members": {}, **given}  # a deploy pins the members' active versions unless others are given
    if present.get("objectives") and given.get("objectives"):
        merged["objectives"] = {**present["objectives"], **given["objectives"]}  # a single objective may be changed
    return merged


def wait_for(client: Client, out: Output, model: str, timeout: float) -> Deployment:
    """Wait until a deployment is Ready.

    Raises:
        OperationFailedError: It settled in another state.
        WaitTimeoutError: It did not settle in time.
    """
    deadline = time.monotonic() + timeout
    with waiting(out, f"waiting for {model}") as bar:
        while True:
            left = max(0.0, deadline - time.monotonic())
            document = client.get(
                f"{deployment_path(model)}/wait", read_seconds=min(left, 30) + 30, timeout=min(left, 30.0)
            )
            deployment = client.read(Deployment, document)
            status = deployment.status
            if status is not None and status.revision >= deployment.revision and status.phase.settled:
                break
            if time.monotonic() >= deadline:
                phase = status.phase.value if status else "Pending"
                raise WaitTimeoutError(
                    f"{model} is still {phase} after {timeout:g} s; the deployment continues", model=model
                )
            if status is not None:
                bar.stage(f"{model}: {status.phase.value.lower()} {status.message}".strip())
    if status.phase in {Phase.READY, Phase.UNLOADED}:
        require_ready(deployment)
        return deployment
    raise OperationFailedError(
        f"{model} is {status.phase.value}: {status.message or 'no reason is known'}", code="not-ready"
    )


def wait_for_condition(client: Client, out: Output, model: str, wanted: str, timeout: float) -> Deployment:
    """Wait until a condition of a deployment is true, whatever happens to it meanwhile.

    Raises:
        InvalidInputError: The condition does not exist.
        WaitTimeoutError: It did not become true in time; the message has the present state.
    """
    awaited = Awaited.parse(wanted)
    deadline = time.monotonic() + timeout
    with waiting(out, f"waiting for {model} to be {awaited}"):
        while True:
            left = min(max(0.0, deadline - time.monotonic()), _LONGEST_LOOK_SECONDS)
            path = f"{deployment_path(model)}/wait"
            document = client.get(path, read_seconds=left + 30, timeout=left, **{"for": wanted})
            deployment = client.read(Deployment, document)
            status = deployment.status
            known = status is not None and status.revision >= deployment.revision
            if status is not None and known and awaited.holds(status.phase, status.conditions):
                return deployment
            if time.monotonic() >= deadline:
                break
    about = [one for one in status.conditions if one.type == awaited.type] if status else []
    how = about[0].message if about else status.message if status else ""
    phase = status.phase.value if status else "Pending"
    raise WaitTimeoutError(
        f"{model} is not {awaited} after {timeout:g} s; it is {phase}: {how or 'no reason is known'}", model=model
    )


def show_ready(out: Output, deployment: Deployment, seconds: float) -> None:
    """Print that a version is active, and how long each step took; or that the request changed nothing."""
    status = deployment.status
    version = deployment.spec.version
    if status is not None and status.phase is Phase.UNLOADED:
        why = (
            next((one.why for one in deployment.memory if one.state not in {"loaded", "assigned-elsewhere"}), "")
            or status.message
        )
        out.line(f"{deployment.model}:{version} is deployed but not loaded: {why}")
        return
    if not deployment.changed:
        out.line(f"{deployment.model}:{version} is unchanged and already active (revision {deployment.revision})")
        return
    stages: dict[str, float] = {}
    proof = None
    for server in status.servers if status else ():
        for stage, took in server.seconds.items():
            stages[stage] = max(took, stages.get(stage, 0.0))
        proof = server.proof or proof
    spent = ", ".join(f"{stage} {span(took)}" for stage, took in stages.items() if took >= 0.0005)
    out.line(f"{deployment.model}:{version} is active after {span(seconds)}" + (f" ({spent})" if spent else ""))
    if proof is not None and proof.samples and proof.version == version:
        out.line(
            f"proved with {proof.samples} golden sample{'s' * (proof.samples > 1)} through Triton, "
            f"{span(proof.latency_seconds)} each"
        )
    elif proof is not None and not proof.samples:
        out.note("not proved: the version has no golden samples", style="yellow")
