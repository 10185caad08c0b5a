"""Samples that were recorded after publication: ``samples/MODEL/VERSION/ID.npz``, created once and never overwritten.

A manifest is immutable and may be signed, so these samples are not part of it. Each object has the samples in the form
of `domain.samples`, and one more member, ``record.json``. A record counts only for the content that it names.
"""

import io
import threading
import zipfile
from collections import OrderedDict
from contextlib import suppress

from pydantic import ValidationError

from controlplane.domain.recorded_samples import SampleRecord
from controlplane.domain.samples import UNREADABLE, Sample, decode_samples, encode_samples
from controlplane.errors import (
    ConflictError,
    InvalidArtifactError,
    InvalidInputError,
    NotFoundError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from controlplane.storage.base import ObjectStore

PREFIX = "samples/"
RECORDS_MAX = 32
"""Records of one version; each full proof sends all their samples."""
RECORD_BYTES_MAX = 32 * 1024 * 1024
"""Size of one record in the store."""
_MEMBER = "record.json"
_SUFFIX = ".npz"
_KEPT_BYTES = 64 * 1024 * 1024
_KEPT_VERSIONS = 4096

Recorded = tuple[SampleRecord, tuple[Sample, ...]]


class RecordedSamples:
    """Reads and writes the records. Blocks; safe to use from several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._guard = threading.Lock()
        self._keys: OrderedDict[tuple[str, int], tuple[str, ...]] = OrderedDict()
        self._read: OrderedDict[str, tuple[Recorded, int]] = OrderedDict()

    def put(self, model: str, version: int, record: SampleRecord, samples: tuple[Sample, ...]) -> bool:
        """Write a record; return whether it is new.

        Raises:
            ConflictError: The version has as many records as it can have.
            InvalidInputError: The record is too large.
            StoreError: The store failed.
        """
        if len(self.keys(model, version)) >= RECORDS_MAX:
            raise ConflictError(
                f"{model}:{version} has {RECORDS_MAX} records of samples, the most that a version can have; remove "
                f"one with `tritonctl samples rm {model}:{version} ID`",
                model=model,
                version=version,
            )
        buffer = io.BytesIO(encode_samples(samples))
        with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(_MEMBER), record.model_dump_json(indent=2))
        body = buffer.getvalue()
        if len(body) > RECORD_BYTES_MAX:
            raise InvalidInputError(
                f"the samples have {len(body)} bytes; the limit of one record is {RECORD_BYTES_MAX}; record fewer or "
                "smaller ones"
            )
        new = True
        try:
            self._store.create(_key(model, version, record.id), body)
        except ObjectExistsError:
            new = False
        self.keys(model, version)
        return new

    def keys(self, model: str, version: int) -> tuple[str, ...]:
        """Return the keys of a version's records, read now in one LIST.

        Raises:
            StoreError: The store failed.
        """
        found = tuple(
            info.key for info in self._store.list(f"{PREFIX}{model}/{version}/") if info.key.endswith(_SUFFIX)
        )
        with self._guard:
            self._keys[model, version] = found
            self._keys.move_to_end((model, version))
            while len(self._keys) > _KEPT_VERSIONS:
                self._keys.popitem(last=False)
        return found

    def read(self, model: str, version: int, *, fresh: bool = True) -> list[Recorded]:
        """Return a version's records, by id.

        Args:
            model: The model.
            version: The version.
            fresh: Whether to read which records exist, also if this process knows them.

        Raises:
            InvalidArtifactError: A record is damaged.
            StoreError: The store failed.
        """
        with self._guard:
            known = self._keys.get((model, version))
        keys = self.keys(model, version) if fresh or known is None else known
        found = []
        for key in keys:
            with suppress(ObjectNotFoundError):  # removed meanwhile
                found.append(self._one(model, version, key))
        return found

    def remove(self, model: str, version: int, record_id: str) -> None:
        """Delete a record.

        Raises:
            NotFoundError: There is no such record.
            StoreError: The store failed.
        """
        key = _key(model, version, record_id)
        if key not in self.keys(model, version):
            raise NotFoundError(
                f"{model}:{version} has no recorded samples {record_id!r}; `tritonctl samples list {model}:{version}` "
                "lists them",
                model=model,
                version=version,
            )
        self._store.delete(key)
        self.keys(model, version)

    def _one(self, model: str, version: int, key: str) -> Recorded:
        with self._guard:
            if key in self._read:
                self._read.move_to_end(key)
                return self._read[key][0]
        body = self._store.get(key)
        try:
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                record = SampleRecord.model_validate_json(archive.read(_MEMBER))
            found = record, decode_samples(body)
        except (*UNREADABLE, ValidationError, InvalidInputError) as error:
            name = key.rpartition("/")[2].removesuffix(_SUFFIX)
            raise InvalidArtifactError(
                f"the recorded samples {name!r} of {model}:{version} are damaged; remove them with `tritonctl samples "
                f"rm {model}:{version} {name}`",
                model=model,
                version=version,
            ) from error
        with self._guard:
            self._read[key] = found, len(body)
            while sum(size for _, size in self._read.values()) > _KEPT_BYTES:
                self._read.popitem(last=False)
        return found


def _key(model: str, version: int, record_id: str) -> str:
    return f"{PREFIX}{model}/{version}/{record_id}{_SUFFIX}"
