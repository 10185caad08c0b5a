"""Backends of `tritonctl keys`: the API, or the bucket itself, for the first key and for a lost last one."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from controlplane.cli.output import ago
from controlplane.cli.session import Session
from controlplane.client.http import Client, segment
from controlplane.domain.durations import parse_duration
from controlplane.domain.validation import invalid_field
from controlplane.errors import InvalidInputError

Document = dict[str, Any]
Documents = list[Document]


class ApiKeys(Protocol):
    """The interface of both backends."""

    def create(self, body: Document) -> Document:
        """Create a key, and return it with its secret."""

    def list(self) -> Documents:
        """Return all keys."""

    def get(self, key: str) -> Document:
        """Return one key by id or name."""

    def revoke(self, key: str) -> Document:
        """Revoke a key by id or name."""


class _OverApi:
    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, body: Document) -> Document:
        created: Document = self._client.post("/v1/keys", body)
        return created

    def list(self) -> Documents:
        found: Documents = self._client.get("/v1/keys")["items"]
        return found

    def get(self, key: str) -> Document:
        found: Document = self._client.get(f"/v1/keys/{segment(key)}")
        return found

    def revoke(self, key: str) -> Document:
        revoked: Document = self._client.delete(f"/v1/keys/{segment(key)}")
        return revoked


class _Offline:
    def __init__(self, session: Session, store: str | None, endpoint: str | None) -> None:
        from controlplane.client.http import whoami
        from controlplane.registry.keys import ApiKeys
        from controlplane.registry.layout import check_layout
        from controlplane.storage.factory import open_store
        from controlplane.storage.probe import check_store

        settings = session.settings(store=store, endpoint=endpoint)
        self.store = open_store(settings.store, settings.data_dir)
        check_store(self.store)
        check_layout(self.store)
        self._keys = ApiKeys(self.store)
        self._actor = f"offline/{session.actor or whoami()}"

    def create(self, body: Document) -> Document:
        from controlplane.api.schemas.keys import KeyRequestBody, KeyView

        try:
            request = KeyRequestBody.model_validate(body).to_request()
        except ValidationError as error:
            raise InvalidInputError(f"failed to create the key: {invalid_field(error)}") from error
        key, secret = self._keys.create(request, actor=self._actor)
        return {"key": KeyView.of(key, datetime.now(UTC)).model_dump(mode="json"), "secret": secret}

    def list(self) -> Documents:
        from controlplane.api.schemas.keys import KeyView

        now = datetime.now(UTC)
        return [KeyView.of(key, now).model_dump(mode="json") for key in self._keys.read()[1].keys]

    def get(self, key: str) -> Document:
        from controlplane.api.schemas.keys import KeyView
        from controlplane.registry.keys import find

        return KeyView.of(find(self._keys.read()[1], key), datetime.now(UTC)).model_dump(mode="json")

    def revoke(self, key: str) -> Document:
        from controlplane.api.schemas.keys import KeyView

        return KeyView.of(self._keys.revoke(key, actor=self._actor), datetime.now(UTC)).model_dump(mode="json")


@contextmanager
def api_keys(session: Session, *, offline: bool, store: str | None, endpoint: str | None) -> Iterator[ApiKeys]:
    """Provide the keys, over the API or offline.

    Raises:
        InvalidInputError: A store is given together with the API, which has its own.
    """
    if not offline:
        if store or endpoint:
            raise InvalidInputError("--store and --endpoint need --offline; the control plane uses its own store")
        with session.client() as client:
            yield _OverApi(client)
        return
    work = _Offline(session, store, endpoint)
    try:
        yield work
    finally:
        work.store.close()


@contextmanager
def keep_secret(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Open the file for a secret before the key is created, so that no key is created whose secret cannot be stored.

    Raises:
        InvalidInputError: The file exists already, or cannot be created.
    """
    if path is None:
        yield lambda _: None
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise InvalidInputError(f"failed to create {path}: {(error.strerror or '').lower()}", path=str(path)) from error
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            yield lambda secret: _write(file, secret)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def keep_secrets(folder: Path | None, names: Iterable[str]) -> Iterator[Callable[[str, str], None]]:
    """Open ``NAME.key`` in a folder for the secret of each key that will be created (see `keep_secret`).

    Raises:
        InvalidInputError: A file exists already, or cannot be created.
    """
    if folder is None:
        yield lambda _name, _secret: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        keep = {name: stack.enter_context(keep_secret(folder / f"{name}.key")) for name in names}
        yield lambda name, secret: keep[name](secret)


def _write(file: Any, secret: str) -> None:
    file.write(f"{secret}\n")
    file.flush()


def end_of(lasts: str) -> datetime:
    """Return the expiry of a key with this lifetime from now.

    Raises:
        InvalidInputError: The text is not a duration, or the duration is too long.
    """
    try:
        return datetime.now(UTC) + timedelta(seconds=parse_duration(lasts))
    except OverflowError:
        raise InvalidInputError(f"{lasts!r} is too long; omit --expires for a key that does not expire") from None


def when(moment: str | None) -> str:
    """Return a moment as text."""
    return ago(datetime.fromisoformat(moment)) if moment else "-"
