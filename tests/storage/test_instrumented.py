"""Each operation on a store is counted with its outcome, without a change of its behaviour."""

import pytest

from controlplane.errors import ObjectExistsError, ObjectNotFoundError, StoreUnavailableError
from controlplane.storage.instrumented import OUTCOMES, MeteredStore
from controlplane.storage.memory import MemoryStore
from controlplane.storage.s3.store import S3Store
from tests.storage.conftest import Behind
from tests.support.faultproxy import Action, Fault, FaultProxy


def test_operations_are_counted_by_outcome() -> None:
    told: list[tuple[str, str]] = []

    def observe(operation: str, outcome: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        assert outcome in OUTCOMES
        told.append((operation, outcome))

    store = MeteredStore(MemoryStore(), observe)
    store.create("a/1", b"one")
    with pytest.raises(ObjectExistsError):
        store.create("a/1", b"two")
    with pytest.raises(ObjectNotFoundError):
        store.get("a/2")
    store.create("a/2", b"two")
    listed = store.list("a/")
    assert told[-1] == ("create", "ok")  # no request is sent before the listing is read
    assert [info.key for info in listed] == ["a/1", "a/2"]
    assert list(store.list("b/")) == []
    assert list(store.list_folders("")) == ["a"]
    assert told == [
        ("create", "ok"),
        ("create", "exists"),
        ("get", "missing"),
        ("create", "ok"),
        ("list", "ok"),
        ("list", "ok"),
        ("list_folders", "ok"),
    ]


def test_operations_on_an_unavailable_store_are_counted_as_unavailable(behind_moto: Behind, proxy: FaultProxy) -> None:
    told: list[tuple[str, str]] = []
    prefix = behind_moto.new_prefix()
    settings = behind_moto.server.settings(
        behind_moto.bucket, prefix, endpoint_url=proxy.endpoint_url, retries=0, timeout_seconds=5
    )
    real = S3Store(behind_moto.bucket, prefix, settings)
    store = MeteredStore(real, lambda operation, outcome, _: told.append((operation, outcome)))
    for method, ask in (("HEAD", lambda: store.head("a")), ("GET", lambda: list(store.list("a")))):
        proxy.inject(Fault(Action.ANSWER, method))
        with pytest.raises(StoreUnavailableError):
            ask()
    assert store.head("a") is None
    store.close()
    assert told == [("head", "unavailable"), ("list", "unavailable"), ("head", "ok")]
