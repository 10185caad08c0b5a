"""Holds a model while a command runs, or until Ctrl-C."""

import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.output import Output, error_line, span
from controlplane.cli.progress import waiting
from controlplane.cli.workflows.deploy import deployment_path
from controlplane.client.errors import ClientError, NotRunningError, WaitTimeoutError
from controlplane.client.http import Client
from controlplane.client.memory import Hold
from controlplane.errors import InvalidInputError

_NOT_FOUND_STATUS = 404
_RENEW_SHARE = 3
"""A hold is renewed after a third of its time: two renewals may fail before it ends."""
_SHELL_NOT_FOUND = 127


class HeldModel:
    """A hold that a thread renews in the background over its own connection.

    Args:
        url: The control plane's address.
        actor: The caller's name.
        out: Where problems are reported.
        hold: The hold.
        ttl_seconds: Its time to live.
    """

    def __init__(self, url: str, actor: str | None, out: Output, hold: Hold, ttl_seconds: float) -> None:
        self._url = url
        self._actor = actor
        self._out = out
        self._ttl = ttl_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="renew hold", daemon=True)
        self.hold = hold

    def start(self) -> None:
        """Start to renew the hold."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the renewals."""
        self._over.set()
        self._thread.join(timeout=5)

    def _renew(self) -> None:
        with Client(self._url, actor=self._actor) as client:
            while not self._over.wait(self._ttl / _RENEW_SHARE):
                try:
                    self.hold = self._renewed(client)
                except (ClientError, NotRunningError, WaitTimeoutError) as error:
                    self._out.note(f"failed to renew the hold of {self.hold.model}: {error.message}", style="yellow")

    def _renewed(self, client: Client) -> Hold:
        path = f"{deployment_path(self.hold.model)}/holds"
        body: dict[str, object] = {"ttl_seconds": self._ttl}
        try:
            return client.read(Hold, client.put(f"{path}/{self.hold.id}", body))
        except ClientError as error:
            if error.status != _NOT_FOUND_STATUS:
                raise
        self._out.note(f"the hold of {self.hold.model} had expired; creating a new one", style="yellow")
        return client.read(Hold, client.post(path, body | {"holder": self.hold.holder}))


@contextmanager
def held(
    client: Client, out: Output, model: str, *, ttl_seconds: float, wait_seconds: float, actor: str | None
) -> Iterator[HeldModel]:
    """Hold a model while the block runs; the model is ready when the block begins.

    Raises:
        ClientError: It cannot be loaded; the message has the figures.
        WaitTimeoutError: It is not ready in time; then it is not held.
    """
    path = f"{deployment_path(model)}/holds"
    with waiting(out, f"loading {model}"):
        document = client.post(path, {"ttl_seconds": ttl_seconds}, read_seconds=wait_seconds + 30, wait=wait_seconds)
    hold = client.read(Hold, document)
    held_model = HeldModel(client.url, actor, out, hold, ttl_seconds)
    try:
        if not hold.ready:
            raise WaitTimeoutError(f"{model} is not ready after {span(wait_seconds)}: {hold.message}", model=model)
        held_model.start()
        yield held_model
    finally:
        held_model.stop()
        with suppress(ClientError, NotRunningError, WaitTimeoutError):  # it expires automatically in any case
            client.delete(f"{path}/{held_model.hold.id}")


def run(command: Sequence[str]) -> int:
    """Run a command in the foreground; return its exit code as shells report it.

    Raises:
        InvalidInputError: It cannot be run.
    """
    try:
        process = subprocess.Popen(list(command))
    except FileNotFoundError:
        error_line(f"command not found: {command[0]!r}")
        return _SHELL_NOT_FOUND
    except OSError as error:
        raise InvalidInputError(f"failed to run {command[0]!r}: {error.strerror}") from error
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it to the command as well, whose reaction decides
        return code if code >= 0 else 128 - code


def until_interrupted() -> int:
    """Wait for Ctrl-C."""
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    return int(ExitCode.OK)
