"""Alerts about objectives are recorded in the bucket first, and undelivered ones are sent again unchanged."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.metrics import ObjectiveKind, ObjectiveState
from controlplane.errors import StoreUnavailableError
from controlplane.monitoring.alerts import PART, AlertNotifier
from controlplane.monitoring.webhook import Webhook
from controlplane.registry.condition_log import ConditionLog
from controlplane.settings import MonitoringSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from tests.support.api import onnx_scale
from tests.support.control_process import running
from tests.support.hooked_store import HookedStore
from tests.support.receiver import Received, Receiver

SECRET = "a secret that is long enough"


def state(*, burning: bool) -> ObjectiveState:
    return ObjectiveState(kind=ObjectiveKind.LATENCY, target="fast", budget=0.01, burning=burning, windows=())


@pytest.fixture
def store(tmp_path: Path) -> FilesystemStore:
    return FilesystemStore(tmp_path / "store")


class Process:
    """What tells in one control plane, with a real webhook; the looks are made by hand."""

    def __init__(self, store: ObjectStore, receiver: Receiver, seasoned_seconds: float, **more: float) -> None:
        values = {
            "webhook_url": receiver.url,
            "webhook_secret": SECRET,
            "webhook_backoff_initial_seconds": 0.02,
            "webhook_backoff_max_seconds": 0.05,
            **more,
        }
        self.webhook = Webhook(MonitoringSettings.model_validate(values))
        self.leading = True
        self.notices = AlertNotifier(
            ConditionLog(store), self.webhook, leading=lambda: self.leading, seasoned_seconds=seasoned_seconds
        )

    def look(self, **burning: bool) -> bool:
        """Look at some models: whether each burns."""
        told = self.notices.ready()
        if told:
            for model, one in burning.items():
                self.notices.notify(model, state(burning=one), {"model": model})
            self.notices.keep()
        return told

    async def until(self, what: Callable[[], Any], **burning: bool) -> None:
        async with asyncio.timeout(60):
            while not what():
                self.look(**burning)
                await asyncio.sleep(0.02)


@asynccontextmanager
async def process(
    store: ObjectStore, receiver: Receiver, seasoned_seconds: float = 0.0, **more: float
) -> AsyncIterator[Process]:
    one = Process(store, receiver, seasoned_seconds, **more)
    await one.webhook.start()
    try:
        yield one
    finally:
        await one.webhook.stop()
        await one.notices.stop()


def kept(store: ObjectStore, model: str) -> dict[str, Any]:
    """The record of a model's objective; empty where there is none."""
    found = ConditionLog(store).all().get(model, {}).get(PART, {})
    return dict(found.get("latency", {}))


def kind(received: Received) -> str:
    return str(json.loads(received.body)["type"])


async def test_undelivered_alert_is_resent_and_recovery_waits_for_windows(
    store: FilesystemStore, receiver: Receiver
) -> None:
    receiver.status = 503
    async with process(store, receiver) as before:
        await before.until(lambda: receiver.received and kept(store, "net"), net=True)
    tries = list(receiver.received)
    assert kept(store, "net")["arrived"] is False
    receiver.status, seasoned, started = 200, 2.0, time.monotonic()
    async with process(store, receiver, seasoned) as after:
        # Its windows are empty, so that it does not seem to burn any more.
        await after.until(lambda: kept(store, "net")["burning"] is False and kept(store, "net")["arrived"], net=False)
    first, second = receiver.received[len(tries) :]
    assert first.body == tries[0].body
    assert json.loads(first.body)["data"]["objective"]["burning"] is True
    assert (kind(first), first.headers["webhook-id"]) == ("objective.burning", tries[0].headers["webhook-id"])
    assert kind(second) == "objective.kept"
    assert second.headers["webhook-id"] != first.headers["webhook-id"]
    assert second.at - started >= seasoned


async def test_unrecorded_alert_is_not_sent(store: FilesystemStore, receiver: Receiver) -> None:
    refused: list[str] = []

    def refuse(operation: str, key: str) -> None:
        if operation == "create":
            refused.append(key)
            raise StoreUnavailableError("away")

    hooked = HookedStore(store, before=refuse)
    async with process(hooked, receiver) as one:
        await one.until(lambda: len(refused) >= 3, net=True)
        assert (one.webhook.waiting, receiver.received) == (0, [])
        # It recovers before the first alert could be sent: both alerts are sent all the same, in order.
        await one.until(lambda: len(refused) >= 6, net=False)
        hooked.before = lambda *_: None
        await one.until(lambda: len(receiver.received) == 2 and kept(store, "net")["arrived"], net=False)
    assert [kind(received) for received in receiver.received] == ["objective.burning", "objective.kept"]
    assert kept(store, "net")["id"] == receiver.received[1].headers["webhook-id"]


async def test_failed_record_does_not_delay_other_alerts(store: FilesystemStore, receiver: Receiver) -> None:
    def refuse(operation: str, key: str) -> None:
        if operation == "create" and "/bad/" in key:
            raise StoreUnavailableError("away")

    async with process(HookedStore(store, before=refuse), receiver) as one:
        others = {f"net{number}": True for number in range(8)}
        await one.until(lambda: len(receiver.received) == len(others), bad=True, **others)
    assert {json.loads(received.body)["data"]["model"] for received in receiver.received} == others.keys()


async def test_slow_store_does_not_block_evaluation(store: FilesystemStore, receiver: Receiver) -> None:
    free, stalled = threading.Event(), threading.Event()

    def stall(operation: str, _key: str) -> None:
        if operation == "list":
            stalled.set()
            free.wait(60)

    async with process(HookedStore(store, before=stall), receiver) as one:
        try:
            while not stalled.is_set():
                assert not one.look(net=True)
                await asyncio.sleep(0.001)
            for _ in range(20):
                assert not one.look(net=True)
                await asyncio.sleep(0)
        finally:
            free.set()
        await one.until(lambda: receiver.received, net=True)


async def test_maximum_age_counts_from_first_attempt_of_any_process(store: FilesystemStore, receiver: Receiver) -> None:
    receiver.status = 503
    since = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    record = {"burning": True, "id": "msg_1", "arrived": False, "since": since, "data": {"model": "net"}}
    assert ConditionLog(store).put("net", PART, {"latency": record}, actor="test", reason="test")
    async with process(store, receiver, webhook_max_age_seconds=3600) as one:
        await one.until(lambda: kept(store, "net")["arrived"], net=True)
        assert one.webhook.outcomes["given_up"] == 1
    (only,) = receiver.received
    assert (json.loads(only.body)["timestamp"], only.headers["webhook-id"]) == (since, "msg_1")


async def test_returning_leader_does_not_queue_alert_twice(store: FilesystemStore, receiver: Receiver) -> None:
    receiver.status = 503
    async with process(store, receiver) as one:
        await one.until(lambda: one.webhook.waiting == 1, net=True)
        one.leading = False
        assert not one.look(net=True)
        one.leading = True
        await one.until(lambda: one.look(net=True), net=True)
        assert one.webhook.waiting == 1
        receiver.status = 200
        await one.until(lambda: kept(store, "net")["arrived"], net=True)
    assert len({received.headers["webhook-id"] for received in receiver.received}) == 1
    assert one.webhook.outcomes["delivered"] == 1


async def test_alert_recorded_by_another_leader_is_kept(store: FilesystemStore, receiver: Receiver) -> None:
    receiver.status = 503
    assert ConditionLog(store).put("net", "conditions", {}, actor="test", reason="test")
    async with process(store, receiver) as old, process(store, receiver) as new:
        await old.until(lambda: old.look(net=False), net=False)
        await new.until(lambda: kept(store, "net"), net=True)
        # The old one does not know yet that it was replaced; it sends the new one's alert, and none of its own.
        await old.until(lambda: old.webhook.waiting == 1, net=True)
        receiver.status = 200
        await new.until(lambda: kept(store, "net")["arrived"], net=True)
    assert {received.headers["webhook-id"] for received in receiver.received} == {kept(store, "net")["id"]}


@pytest.mark.triton
def test_webhook_of_killed_control_plane_is_sent_with_recorded_id(receiver: Receiver, tmp_path: Path) -> None:
    receiver.stop()
    environment: dict[str, Any] = {
        "CONTROLPLANE_MONITORING__INTERVAL_SECONDS": "0.2",
        "CONTROLPLANE_MONITORING__OBJECTIVE_INTERVAL_SECONDS": "0.2",
        "CONTROLPLANE_MONITORING__BURN_RULES": '[{"long_seconds": 60, "short_seconds": 4, "factor": 2}]',
        "CONTROLPLANE_MONITORING__WEBHOOK_URL": receiver.url,
        "CONTROLPLANE_MONITORING__WEBHOOK_SECRET": SECRET,
        "CONTROLPLANE_MONITORING__WEBHOOK_BACKOFF_INITIAL_SECONDS": "0.05",
        "CONTROLPLANE_MONITORING__WEBHOOK_BACKOFF_MAX_SECONDS": "0.2",
    }
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}
    end = time.monotonic() + 240

    def record() -> dict[str, Any]:
        assert time.monotonic() < end, "it did not come to be"
        return kept(store_of(tmp_path), "net")

    with running(tmp_path, **environment) as (api, gateway):
        api.publish("net", onnx_scale(2))
        api.deploy("net:1", bake_seconds=0, objectives={"p99_milliseconds": 0.001})
        while not (told := record()):
            for _ in range(20):
                gateway.post("/v2/models/net/infer", json=body).raise_for_status()
    assert (told["burning"], told["arrived"], receiver.received) == (True, False, [])
    receiver.start()
    with running(tmp_path, **environment) as (_, _):
        while not (record()["arrived"] and receiver.received):
            time.sleep(0.1)
    first, *rest = receiver.received
    assert first.headers["webhook-id"] == told["id"]
    as_kept = {"type": "objective.burning", "timestamp": told["since"], "data": told["data"]}
    assert json.loads(first.body) == as_kept
    assert not [one for one in rest if kind(one) == "objective.burning"]


def store_of(folder: Path) -> FilesystemStore:
    (found,) = {path.parent.parent.parent for path in folder.rglob("conditions/net/*.json")} or {folder}
    return FilesystemStore(found)
