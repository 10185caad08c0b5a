"""API keys for tests: created over the real API, and clients that send them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from controlplane.settings import Settings
from tests.support.api import Api, serving


def made(api: Api, admin: httpx.Client, name: str, *scopes: str, **fields: Any) -> tuple[str, httpx.Client]:
    """Make a key; returns its secret and a client that shows it."""
    answer = api.ok(admin.post("/v1/keys", json={"name": name, "scopes": list(scopes), **fields}), 201)
    return answer["secret"], client(api, answer["secret"])


def client(api: Api, secret: str) -> httpx.Client:
    return httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {secret}"}, timeout=60)


@contextmanager
def with_key(api: Api, admin: httpx.Client, name: str, *scopes: str, **fields: Any) -> Iterator[Api]:
    """The same API as the holder of a new key sees it."""
    _, holder = made(api, admin, name, *scopes, **fields)
    with holder:
        yield Api(api.plane, holder, api.url)


@contextmanager
def guarded_api(settings: Settings) -> Iterator[Api]:
    """Run the application with keys in use; the client is an administrator's."""
    with serving(settings) as api:
        _, admin = made(api, api.http, "root", "admin")
        with admin:
            yield Api(api.plane, admin, api.url)
