"""Measured footprints, stored with the version, so that other machines need not estimate them.

There is one chain for each way to run a version,
``footprints/<model>/<version>/<backend>-<kind>-b<batch>-i<instances>/``: the memory that a version needs depends on the
backend, the kind of device, the largest batch and the number of instances. A measurement is committed if it is the
first one, or if one of its values is larger than the stored one.
"""

import logging
import re
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controlplane.errors import CommitConflictError, StoreWentBackwardsError
from controlplane.registry.chain import Chain, Revision
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

PREFIX = "footprints/"
_SAME = 0.1
"""Relative tolerance: measurements that differ by less than this share of the larger one are equal."""
_NOISE_BYTES = 1024 * 1024
"""Random variation of the memory that stays in a server after an unload."""
_TRIES = 3
_WAY = re.compile(r"(.+)-(cpu|gpu)-b(\d+)-i(\d+)")


@dataclass(frozen=True, slots=True)
class FootprintKey:
    """A way to run a version.

    Attributes:
        model: The model.
        version: The version.
        backend: Triton's backend.
        kind: ``cpu`` or ``gpu``.
        max_batch_size: The configured maximum batch size.
        instances: Instances on a device.
    """

    model: str
    version: int
    backend: str
    kind: str
    max_batch_size: int
    instances: int

    @property
    def prefix(self) -> str:
        """Return the key prefix of the chain."""
        way = f"{self.backend}-{self.kind}-b{self.max_batch_size}-i{self.instances}"
        return f"{PREFIX}{self.model}/{self.version}/{way}/"


@dataclass(frozen=True, slots=True)
class MeasuredFootprint:
    """A measurement, in bytes on each device on which the version was loaded.

    Attributes:
        bytes: Resident memory after the load and the first responses.
        peak_bytes: Peak memory during the load.
        inference_peak_bytes: Peak memory since the load, during inference; 0 if it was not measured.
        left_bytes: The largest amount that stayed in the server after the unload; None if it is unknown (other models
            were active in the meantime).
        load_seconds: Duration of the load, without fetching.
        estimate_bytes: The estimate before the load; shows how accurate the estimates are.
        by: The method of measurement: ``processes``, ``device``, or ``refusal`` (Triton did not have enough memory).
        at: Time of the commit (UTC); None before it is committed.
    """

    bytes: int
    peak_bytes: int
    load_seconds: float
    estimate_bytes: int
    by: str = "processes"
    at: datetime | None = None
    inference_peak_bytes: int = 0
    left_bytes: int | None = None

    @property
    def most_bytes(self) -> int:
        """Return the overall peak memory."""
        return max(self.bytes, self.peak_bytes, self.inference_peak_bytes)


class Footprints:
    """Reads and commits measured footprints. Blocks; safe to use from several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[FootprintKey, Revision | None] = {}
        self._listed: set[tuple[str, int]] = set()
        self._surveyed: dict[tuple[str, str], set[str]] | None = None
        self._guard = threading.Lock()

    def peek(self, key: FootprintKey) -> MeasuredFootprint | None:
        """Return the measurement from memory. No I/O."""
        revision = self._known.get(key)
        return _parse(revision) if revision else None

    def revision(self, key: FootprintKey) -> Revision | None:
        """Return the revision that `peek` reads; another object after each change. No I/O."""
        return self._known.get(key)

    def get(self, key: FootprintKey) -> MeasuredFootprint | None:
        """Return the newest measurement; None if there is none. Reads the store once for each key."""
        with self._guard:
            if key in self._known:
                revision = self._known[key]
                return _parse(revision) if revision else None
        revision = Chain(self._store, key.prefix).head()
        with self._guard:
            self._known[key] = revision
        return _parse(revision) if revision else None

    def load(self, model: str, version: int) -> None:
        """Load all measurements of a version into memory, so that `peek` finds them. One LIST, once."""
        with self._guard:
            if (model, version) in self._listed:
                return
            surveyed = self._surveyed
        if surveyed is not None:
            ways = sorted(surveyed.get((model, str(version)), ()))
        else:
            ways = list(self._store.list_folders(f"{PREFIX}{model}/{version}/"))
        for way in ways:
            match = _WAY.fullmatch(way)
            if match:
                self.get(FootprintKey(model, version, match[1], match[2], int(match[3]), int(match[4])))
        with self._guard:
            self._listed.add((model, version))

    def survey(self) -> None:
        """Find the versions that have measurements, before many calls of `load`; one LIST for 1,000 keys."""
        found: dict[tuple[str, str], set[str]] = {}
        for info in self._store.list(PREFIX):
            match info.key.removeprefix(PREFIX).split("/"):
                case [model, version, way, _]:
                    found.setdefault((model, version), set()).add(way)
        with self._guard:
            self._surveyed = found

    def end_survey(self) -> None:
        """End the survey, so that `load` reads the store again."""
        with self._guard:
            self._surveyed = None

    def of(self, model: str, version: int) -> list[tuple[FootprintKey, MeasuredFootprint]]:
        """Return all measurements of a version. Reads the store."""
        prefix, found = f"{PREFIX}{model}/{version}/", []
        for way in sorted(self._store.list_folders(prefix)):
            if match := _WAY.fullmatch(way):
                key = FootprintKey(model, version, match[1], match[2], int(match[3]), int(match[4]))
                head = Chain(self._store, key.prefix).head()
                measured = _parse(head) if head else None
                if measured is not None:
                    found.append((key, measured))
        return found

    def put(self, key: FootprintKey, measured: MeasuredFootprint, *, actor: str) -> MeasuredFootprint:
        """Commit a measurement if it adds information; return the valid measurement."""
        chain = Chain(self._store, key.prefix)
        for _ in range(_TRIES):
            try:
                head = chain.refresh(self._known.get(key))
            except StoreWentBackwardsError as error:  # the lost measurements are measured again
                logger.warning("failed to store measured footprints: %s", error)
                head = chain.head()
            known = _parse(head) if head else None
            if known is not None and not _news(measured, known):
                with self._guard:
                    self._known[key] = head
                return known
            kept = measured if known is None else _joined(measured, known)
            try:
                committed = chain.append(_body(kept), after=head, actor=actor, reason=f"measured by {measured.by}")
            except CommitConflictError:
                with self._guard:
                    self._known.pop(key, None)
                continue
            with self._guard:
                self._known[key] = committed
            return _parse(committed) or kept
        return measured


def _news(measured: MeasuredFootprint, known: MeasuredFootprint) -> bool:
    return (
        measured.bytes > known.bytes * (1 + _SAME)
        or measured.peak_bytes > known.peak_bytes * (1 + _SAME)
        or measured.inference_peak_bytes > known.inference_peak_bytes * (1 + _SAME)
        or _left_more(measured.left_bytes, known.left_bytes)
        or (measured.by != "refusal" and known.by == "refusal")
    )


def _left_more(measured: int | None, known: int | None) -> bool:
    return measured is not None and (known is None or measured > known * (1 + _SAME) + _NOISE_BYTES)


def _joined(measured: MeasuredFootprint, known: MeasuredFootprint) -> MeasuredFootprint:
    if known.by == "refusal":
        return measured
    return MeasuredFootprint(
        bytes=max(measured.bytes, known.bytes),
        peak_bytes=max(measured.peak_bytes, known.peak_bytes),
        load_seconds=measured.load_seconds or known.load_seconds,
        estimate_bytes=measured.estimate_bytes,
        by=measured.by,
        inference_peak_bytes=max(measured.inference_peak_bytes, known.inference_peak_bytes),
        left_bytes=max((one for one in (measured.left_bytes, known.left_bytes) if one is not None), default=None),
    )


def _body(measured: MeasuredFootprint) -> dict[str, Any]:
    return {
        "bytes": measured.bytes,
        "peak_bytes": measured.peak_bytes,
        "load_seconds": round(measured.load_seconds, 3),
        "estimate_bytes": measured.estimate_bytes,
        "by": measured.by,
        "inference_peak_bytes": measured.inference_peak_bytes,
        "left_bytes": measured.left_bytes,
    }


def _parse(revision: Revision) -> MeasuredFootprint | None:
    body = revision.body
    try:
        return MeasuredFootprint(
            bytes=int(body["bytes"]),
            peak_bytes=int(body["peak_bytes"]),
            load_seconds=float(body["load_seconds"]),
            estimate_bytes=int(body["estimate_bytes"]),
            by=str(body.get("by", "processes")),
            at=revision.at,
            inference_peak_bytes=int(body.get("inference_peak_bytes", 0)),
            left_bytes=None if body.get("left_bytes") is None else int(body["left_bytes"]),
        )
    except (KeyError, ValueError, TypeError):
        return None  # written by another program: treated as missing
