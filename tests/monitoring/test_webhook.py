"""Webhooks reach a real receiver that fails, hangs, goes away and comes back; signed, in order, and bounded."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable

import pytest
from pydantic import SecretStr

from controlplane.errors import InvalidInputError
from controlplane.monitoring.webhook import Webhook, key_of, sign
from controlplane.settings import MonitoringSettings
from tests.support.receiver import Received, Receiver

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


def settings(receiver: Receiver, **more: float) -> MonitoringSettings:
    values = {
        "webhook_url": receiver.url,
        "webhook_secret": SECRET,
        "webhook_timeout_seconds": 0.5,
        "webhook_backoff_initial_seconds": 0.01,
        "webhook_backoff_max_seconds": 0.05,
        **more,
    }
    return MonitoringSettings.model_validate(values)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    one = Receiver()
    one.start()
    yield one
    one.stop()


async def until(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.01)


def verify(received: Received) -> dict[str, object]:
    """Check the signature as the specification of Standard Webhooks says, without the code under test."""
    headers = received.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + received.body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 120
    assert headers["content-type"] == "application/json"
    document: dict[str, object] = json.loads(received.body)
    return document


async def test_unreliable_receiver_gets_all_messages_in_order(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    webhook = Webhook(settings(receiver))
    await webhook.start()
    webhook.send("objective.burning", {"n": 1, "why": "ü"})
    await until(lambda: webhook.outcomes["delivered"] == 1)

    receiver.status = 503
    webhook.send("objective.burning", {"n": 2})
    await until(lambda: webhook.outcomes["failed"] >= 3)
    receiver.status = 200
    await until(lambda: webhook.outcomes["delivered"] == 2)

    failed = webhook.outcomes["failed"]
    receiver.hanging.set()
    webhook.send("objective.burning", {"n": 3})
    await until(lambda: webhook.outcomes["failed"] > failed)
    receiver.hanging.clear()
    await until(lambda: webhook.outcomes["delivered"] == 3)

    failed = webhook.outcomes["failed"]
    receiver.stop()
    webhook.send("objective.burning", {"n": 4})
    webhook.send("objective.kept", {"n": 5})
    await until(lambda: webhook.outcomes["failed"] > failed + 1)
    assert webhook.waiting == 2
    receiver.start()
    await until(lambda: webhook.outcomes["delivered"] == 5)
    await webhook.stop()

    documents = [verify(one) for one in receiver.received]
    order = [document["data"]["n"] for document in documents]  # type: ignore[index]
    assert order == sorted(order)
    assert set(order) == {1, 2, 3, 4, 5}
    ids = set(zip(order, (one.headers["webhook-id"] for one in receiver.received), strict=True))
    assert len(ids) == 5  # each keeps its id over all its tries
    assert documents[-1]["type"] == "objective.kept"
    for word in ("very-secret-token", SECRET, "0123456789abcdef"):
        assert word not in caplog.text
    assert "very-secret-token" not in repr(settings(receiver))
    assert SECRET not in repr(settings(receiver))


async def test_queue_is_bounded_and_old_messages_are_dropped(receiver: Receiver) -> None:
    receiver.status = 500
    webhook = Webhook(settings(receiver, webhook_queue=3))
    for number in range(10):
        webhook.send("objective.burning", {"n": number})
    assert (webhook.waiting, webhook.outcomes["dropped"]) == (3, 7)
    receiver.status = 200
    await webhook.start()
    await until(lambda: webhook.outcomes["delivered"] == 3)
    await webhook.stop()
    assert [json.loads(one.body)["data"]["n"] for one in receiver.received] == [7, 8, 9]

    receiver.status = 500
    webhook = Webhook(settings(receiver, webhook_max_age_seconds=0.05))
    await webhook.start()
    webhook.send("objective.burning", {})
    await until(lambda: webhook.outcomes["given_up"] == 1)
    assert webhook.waiting == 0
    await webhook.stop()


async def test_redirects_are_not_followed(receiver: Receiver) -> None:
    receiver.status = 302
    webhook = Webhook(settings(receiver))
    await webhook.start()
    webhook.send("objective.burning", {})
    await until(lambda: webhook.outcomes["failed"] >= 2)
    await webhook.stop()
    assert webhook.outcomes["delivered"] == 0


async def test_no_url_disables_webhook_and_missing_secret_is_refused() -> None:
    webhook = Webhook(MonitoringSettings())
    webhook.send("objective.burning", {})
    await webhook.start()
    assert (webhook.waiting, webhook.enabled) == (0, False)
    await webhook.stop()
    with pytest.raises(InvalidInputError, match="needs a secret"):
        Webhook(MonitoringSettings(webhook_url=SecretStr("http://127.0.0.1:1/")))
    with pytest.raises(InvalidInputError, match="http://"):
        Webhook(MonitoringSettings(webhook_url=SecretStr("ftp://x"), webhook_secret=SecretStr(SECRET)))


def test_keys_are_decoded_and_invalid_secrets_refused() -> None:
    assert key_of(SECRET) == b"0123456789abcdef01234567"
    assert key_of("just a long enough text") == b"just a long enough text"
    for wrong in ("whsec_!!!", "short", "whsec_c2hvcnQ="):
        with pytest.raises(InvalidInputError) as raised:
            key_of(wrong)
        assert wrong not in str(raised.value)


def test_signature_matches_specification() -> None:
    """The example of Standard Webhooks' own documentation and reference libraries."""
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
