"""Sends notifications to a URL: signed, in order, retried with back-off, from a queue of limited length.

The format is that of Standard Webhooks (https://github.com/standard-webhooks/standard-webhooks, spec 1.0), so that its
libraries can check the signature: headers ``webhook-id`` (the same on every attempt, so that receivers can detect a
repetition), ``webhook-timestamp`` (time of the attempt in seconds since the epoch) and ``webhook-signature``: ``v1,``
and the base64 of the HMAC-SHA256 over ``{id}.{timestamp}.{body}``. The secret is the bytes after ``whsec_`` in base64,
or any other text as UTF-8.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import logging
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from controlplane.errors import InvalidInputError
from controlplane.settings import MonitoringSettings

logger = logging.getLogger(__name__)

_PREFIX = "whsec_"
_SECRET_MIN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Message:
    """One notification.

    Attributes:
        id: Its id, the same on every attempt.
        body: The JSON that is sent.
        kind: Its type, such as ``objective.burning``.
        since: When it was first due (monotonic); before the start of this process if another one could not deliver it.
    """

    id: str
    body: bytes
    kind: str
    since: float


def key_of(secret: str) -> bytes:
    """Return the key of a secret.

    Raises:
        InvalidInputError: It is not base64 after ``whsec_``, or too short. The message does not contain the secret.
    """
    try:
        encoded = secret.removeprefix(_PREFIX)
        key = base64.b64decode(encoded, validate=True) if secret.startswith(_PREFIX) else secret.encode()
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError("the webhook's secret is not valid: the part after whsec_ must be base64") from error
    if len(key) < _SECRET_MIN_BYTES:
        raise InvalidInputError(f"the webhook's secret has {len(key)} bytes; give at least {_SECRET_MIN_BYTES}")
    return key


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of ``webhook-signature``."""
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def new_message_id() -> str:
    """Return a unique message id."""
    return f"msg_{uuid.uuid4().hex}"


class Webhook:
    """The delivery queue of one URL. Belongs to one event loop.

    Args:
        settings: URL, secret, deadlines and limits.

    Raises:
        InvalidInputError: There is a URL without a usable secret, or the URL is not valid.

    Attributes:
        on_end: Called with a message's id when it was delivered, given up or dropped.
        outcomes: Messages by outcome (``delivered``, ``given_up``, ``dropped``), and ``failed`` attempts.
    """

    def __init__(self, settings: MonitoringSettings) -> None:
        self._settings = settings
        self._url = settings.webhook_url.get_secret_value() if settings.webhook_url else ""
        self._key = b""
        if self._url:
            if settings.webhook_secret is None:
                raise InvalidInputError("a webhook needs a secret: set CONTROLPLANE_MONITORING__WEBHOOK_SECRET")
            self._key = key_of(settings.webhook_secret.get_secret_value())
            if not self._url.startswith(("http://", "https://")):
                raise InvalidInputError("CONTROLPLANE_MONITORING__WEBHOOK_URL must begin with http:// or https://")
        self.outcomes: Counter[str] = Counter()
        self.on_end: Callable[[str], None] = lambda _: None
        self._queue: deque[Message] = deque()
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of messages in the queue."""
        return len(self._queue)

    @property
    def enabled(self) -> bool:
        """Whether a URL is configured."""
        return bool(self._url)

    def send(self, kind: str, data: Mapping[str, Any], message_id: str = "", *, since: datetime | None = None) -> None:
        """Add a message to the queue; drop the oldest if it is full. Does nothing without a URL.

        Args:
            kind: The type of the message.
            data: The data of the message.
            message_id: The id of a message that is sent again; empty for a new one.
            since: When the message was first due (UTC): its timestamp, from which its maximum age counts; None is now.
        """
        if not self.enabled:
            return
        now = datetime.now(UTC)
        since = since or now
        document = {"type": kind, "timestamp": since.isoformat(), "data": data}
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        if len(self._queue) >= self._settings.webhook_queue:
            dropped = self._queue.popleft()
            self.outcomes["dropped"] += 1
            logger.warning("the webhook queue is full; dropped the oldest message (%s, %s)", dropped.kind, dropped.id)
            self.on_end(dropped.id)
        began = time.monotonic() - max((now - since).total_seconds(), 0.0)
        self._queue.append(Message(message_id or new_message_id(), body, kind, began))
        self._more.set()

    def _hidden(self, record: logging.LogRecord) -> bool:
        """Filter httpx's own log line of each request: it contains the whole URL, which may contain a token."""
        return self._url not in record.getMessage()

    async def start(self) -> None:
        """Start the delivery."""
        if self.enabled:
            logging.getLogger("httpx").addFilter(self._hidden)
            self._task = asyncio.create_task(self._deliver_all(), name="webhook")

    async def stop(self) -> None:
        """Stop the delivery; the next process sends the messages that are left."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
            logging.getLogger("httpx").removeFilter(self._hidden)
        if self._queue:
            logger.warning("%d webhook messages were not delivered before shutdown", len(self._queue))

    async def _deliver_all(self) -> None:
        async with httpx.AsyncClient(timeout=self._settings.webhook_timeout_seconds) as client:
            failures = 0
            while True:
                while not self._queue:
                    self._more.clear()
                    await self._more.wait()
                message = self._queue[0]
                trouble = await self._try(client, message)
                if not trouble:
                    failures = 0
                    self._end(message, "delivered")
                    continue
                self.outcomes["failed"] += 1
                if time.monotonic() - message.since > self._settings.webhook_max_age_seconds:
                    logger.warning("giving up on webhook message %s (%s): %s", message.id, message.kind, trouble)
                    self._end(message, "given_up")
                    continue
                pause = min(
                    self._settings.webhook_backoff_initial_seconds * 2 ** min(failures, 30),
                    self._settings.webhook_backoff_max_seconds,
                )
                failures += 1
                logger.info("webhook message %s failed (%s); next attempt in %.1f s", message.id, trouble, pause)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    def _end(self, message: Message, outcome: str) -> None:
        self.outcomes[outcome] += 1
        if self._queue and self._queue[0] is message:  # else it was dropped during the attempt
            self._queue.popleft()
            self.on_end(message.id)

    async def _try(self, client: httpx.AsyncClient, message: Message) -> str:
        """Send once; return the reason of a failure, else "". Never contains the URL, which may contain a token."""
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "tritonctl",
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._key, message.id, timestamp, message.body),
        }
        try:
            # A deadline for the whole attempt: httpx's timeout is for each part of an answer, and there may be many.
            async with asyncio.timeout(self._settings.webhook_timeout_seconds):
                async with client.stream("POST", self._url, content=message.body, headers=headers) as response:
                    return "" if response.is_success else f"status {response.status_code}"
        except TimeoutError:
            return f"no answer after {self._settings.webhook_timeout_seconds:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"request failed: {type(error).__name__}"
