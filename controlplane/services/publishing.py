"""Publication of an upload as a version."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controlplane.domain.access import Principal, may_bring_code
from controlplane.domain.manifest import FileEntry, Format, GoldenSamples, Lineage, Manifest, Origin
from controlplane.domain.model import VersionEntry
from controlplane.domain.model_directory import CONFIG_FILE
from controlplane.domain.names import validate_alias, validate_model_name
from controlplane.domain.pipelines import members_of
from controlplane.domain.samples import Sample, encode_samples
from controlplane.domain.signature import Signature
from controlplane.domain.tolerance import Tolerance
from controlplane.errors import InvalidArtifactError, InvalidInputError, NotFoundError
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.registry import Registry
from controlplane.servers.requirements import missing_everywhere
from controlplane.servers.server import ManagedServer
from controlplane.services.blobs import keep_bytes
from controlplane.services.model_directories import (
    as_stored,
    declared_samples,
    fitting_samples,
    read_directory,
    recordable,
    require_answers,
    with_batch,
)
from controlplane.services.operations import Operation, Operations, Reporter
from controlplane.services.sample_files import read_samples
from controlplane.services.uploads.service import Uploads
from controlplane.services.uploads.types import Upload
from controlplane.services.workers import Workers
from controlplane.services.workspace import Workspace, assemble
from converters.jobs import Inspection, InspectJob, RecordJob, RecordResult
from converters.options import SamplingOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishCommand:
    """A version to publish; the fields are those of the API's request."""

    model: str
    actor: str
    asker: Principal | None
    upload_id: str
    number: int | None = None
    format: Format | None = None
    signature: Signature | None = None
    batched: bool | None = None
    samples: str | None = None
    sample_count: int = 3
    seed: int = 0
    golden: bool = True
    tolerances: dict[str, Tolerance]
    labels: dict[str, str]
    metrics: dict[str, float]
    aliases: list[str]
    reason: str = ""
    trust: bool = False
    force: bool = False
    origin: Origin | None = None
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArtifactFacts:
    """Facts about an artifact that a worker determined."""

    inspection: Inspection
    signature: Signature | None
    samples: tuple[Sample, ...]
    tolerances: dict[str, Tolerance]
    warnings: tuple[str, ...]
    unservable: str | None = None
    rows_independent: bool | None = None
    config: dict[str, Any] | None = None
    members: tuple[str, ...] = ()


class Publishing:
    """Publishes uploads as versions."""

    def __init__(
        self,
        registry: Registry,
        uploads: Uploads,
        operations: Operations,
        workers: Workers,
        workspace: Workspace,
        reconciler: Reconciler,
        servers: Sequence[ManagedServer],
    ) -> None:
        self._registry = registry
        self._uploads = uploads
        self._operations = operations
        self._workers = workers
        self._workspace = workspace
        self._reconciler = reconciler
        self._servers = servers

    async def start(self, command: PublishCommand) -> Operation:
        """Check what can be checked immediately, and start the publication.

        Raises:
            InvalidInputError: A name is not valid, the upload has no such samples file, or it has no other file.
            InvalidArtifactError: The upload is a model directory with several version folders.
            NotFoundError: The upload does not exist.
            ConflictError: The upload is not complete, or the number is below the model's next one and unused.
        """
        validate_model_name(command.model)
        for alias in command.aliases:
            validate_alias(alias)
        upload = await self._uploads.whole(command.upload_id)
        files, samples = split_samples(upload, command.samples)
        await asyncio.to_thread(self._require_number, command)
        stored = as_stored(files, command.format)

        async def work(reporter: Reporter) -> dict[str, Any]:
            with self._uploads.use(upload.id):
                result = await self._publish(command, upload.id, stored or files, samples, stored is not None, reporter)
            await self._uploads.discard(upload.id)
            return result

        return self._operations.start("publish", work, actor=command.actor, subject=command.model)

    async def _publish(
        self,
        command: PublishCommand,
        upload_id: str,
        files: tuple[FileEntry, ...],
        samples: FileEntry | None,
        directory: bool,
        reporter: Reporter,
    ) -> dict[str, Any]:
        async with self._workspace.folder() as folder:
            artifact = folder / "artifact"
            reporter.stage("prepare", "assembling the files")
            local = await asyncio.to_thread(
                assemble,
                artifact,
                files,
                self._registry.fetch,
                lambda file: self._uploads.path(upload_id, file.sha256),
            )
            given: tuple[Sample, ...] = ()
            if samples is not None:
                given = await asyncio.to_thread(lambda: read_samples(self._locate(upload_id, samples)))
            if command.depends_on and not directory:
                raise InvalidInputError(
                    f"depends_on is given ({', '.join(command.depends_on)}), but only a model directory whose "
                    "config.pbtxt names the Python backend can call other models"
                )
            if directory:
                learnt = await self._learn_directory(command, artifact, files, given, reporter)
            else:
                learnt = await self._learn(command, artifact, given, reporter)
            golden = None
            if learnt.samples:
                entry, path = await asyncio.to_thread(
                    keep_bytes, folder / "samples.npz", encode_samples(learnt.samples)
                )
                golden = GoldenSamples(file=entry, count=len(learnt.samples), tolerances=learnt.tolerances)
                local[entry.sha256] = path
            manifest = Manifest(
                format=learnt.inspection.format,
                files=tuple(
                    file.model_copy(update={"path": learnt.inspection.stored_path(file.path)}) for file in files
                ),
                signature=learnt.signature,
                golden=golden,
                unservable=learnt.unservable,
                rows_independent=learnt.rows_independent,
                config=learnt.config,
                lineage=Lineage(origin=command.origin) if command.origin is not None else None,
                members=learnt.members,
                attributes=learnt.inspection.attributes,
                metrics=command.metrics,
                labels=command.labels,
            )
            same = None if command.force else await asyncio.to_thread(self._unchanged, command, manifest, local)
            if same is not None:
                return self._result(command.model, same, manifest, learnt.warnings, unchanged=True)
            reporter.stage("upload", "writing the files to the store", total=sum(b.size_bytes for b in manifest.blobs))
            version = await asyncio.to_thread(
                lambda: self._registry.publish(
                    command.model,
                    manifest,
                    local,
                    actor=command.actor,
                    reason=command.reason,
                    aliases=command.aliases,
                    number=command.number,
                    progress=reporter.moved,
                )
            )
        self._reconciler.wake(command.model)
        return self._result(command.model, version, manifest, learnt.warnings)

    def _result(
        self,
        model: str,
        version: VersionEntry,
        manifest: Manifest,
        warnings: tuple[str, ...],
        *,
        unchanged: bool = False,
    ) -> dict[str, Any]:
        return {
            "model": model,
            "version": version.number,
            "reference": f"{model}:{version.number}",
            "unchanged": unchanged,
            "format": version.format.value,
            "size_bytes": version.size_bytes,
            "golden_samples": manifest.golden.count if manifest.golden else 0,
            "servable": manifest.servable,
            "members": list(manifest.members),
            "unservable": manifest.unservable,
            "missing": missing_everywhere(manifest, self._servers),
            "warnings": list(warnings),
        }

    def _unchanged(self, command: PublishCommand, manifest: Manifest, local: dict[str, Path]) -> VersionEntry | None:
        """Return the version that the publication would repeat, and move the aliases to it. Blocks.

        It is the version with the publication's number, or the newest one.

        Outputs for generated samples are not compared, because their last digits may differ. Blobs that are missing or
        damaged in the store are written again.
        """
        try:
            versions = self._registry.get_model(command.model).live_versions
        except NotFoundError:
            return None
        if command.number is not None:
            versions = tuple(entry for entry in versions if entry.number == command.number)
        if not versions:
            return None
        entry = versions[-1]
        present = self._registry.manifest(command.model, entry.number)
        # pydantic's `exclude` does not accept False for "keep it".
        left_out = {"golden": {"file"}} if command.samples is None else None
        ours, theirs = (one.model_dump(exclude=left_out) for one in (manifest, present))
        if ours != theirs or (manifest.golden is None) != (present.golden is None):
            return None
        self._registry.ensure_blobs(command.model, manifest, local)
        for alias in command.aliases:
            self._registry.set_alias(command.model, alias, entry.number, actor=command.actor, reason=command.reason)
        return entry

    def _require_number(self, command: PublishCommand) -> None:
        """Refuse early a number that no content can have; of a version that exists, the content is compared later."""
        if command.number is None:
            return
        try:
            head = self._registry.get_model(command.model)
        except NotFoundError:
            return
        if command.force or all(entry.number != command.number for entry in head.live_versions):
            head.require_free(command.number)

    async def _learn(
        self, command: PublishCommand, artifact: Path, given: tuple[Sample, ...], reporter: Reporter
    ) -> ArtifactFacts:
        if command.golden and _is_servable(command, artifact):
            return await self._record(command, artifact, given, reporter)
        inspection = await self._workers.run(
            InspectJob(
                source=artifact,
                signature=command.signature,
                batched=command.batched,
                format=command.format,
                trust=command.trust,
                code=may_bring_code(command.asker),
            ),
            reporter,
        )
        assert isinstance(inspection, Inspection)
        if command.golden and inspection.format.backend is not None:
            return await self._record(command, artifact, given, reporter)
        if given:
            raise InvalidInputError(
                "samples were given but would not be used: "
                + (
                    "golden is false"
                    if not command.golden
                    else f"golden samples of {inspection.format.value} are recorded during the conversion"
                )
            )
        if inspection.format is Format.TORCHSCRIPT:
            # Only torch knows which parts of it Triton can run.
            return await self._record(command, artifact, given, reporter)
        signature = inspection.signature or command.signature
        unservable = inspection.unservable
        if unservable is None and signature is None and inspection.format.backend is not None:
            unservable = inspection.unknown_tensors
        return ArtifactFacts(inspection, signature, (), {}, inspection.hints, unservable)

    async def _record(
        self, command: PublishCommand, artifact: Path, given: tuple[Sample, ...], reporter: Reporter
    ) -> ArtifactFacts:
        recorded = await self._workers.run(
            RecordJob(
                source=artifact,
                signature=command.signature,
                batched=command.batched,
                format=command.format,
                run=command.golden,
                sampling=SamplingOptions(seed=command.seed, sample_count=command.sample_count),
                samples=given,
                code=may_bring_code(command.asker),
            ),
            reporter,
        )
        assert isinstance(recorded, RecordResult)
        return ArtifactFacts(
            recorded.inspection,
            recorded.signature or command.signature,
            recorded.samples,
            {**recorded.tolerances, **_renamed(command.tolerances, command.signature, recorded.signature)},
            recorded.warnings,
            recorded.unservable,
            recorded.rows_independent,
        )

    async def _learn_directory(
        self,
        command: PublishCommand,
        artifact: Path,
        files: tuple[FileEntry, ...],
        given: tuple[Sample, ...],
        reporter: Reporter,
    ) -> ArtifactFacts:
        """Learn from a model directory; an ONNX model is also read, and run to record golden samples."""
        found = await read_directory(artifact, files, command.asker)
        members = members_of(found.config, command.depends_on)
        if command.model in members:
            raise InvalidArtifactError(f"{command.model} names itself as its member; a pipeline cannot contain itself")
        signature = found.signature or command.signature
        given = declared_samples(given, signature)
        if given and not command.golden:
            raise InvalidInputError("samples were given but would not be used: golden is false")
        recorded, notes = None, found.notes
        answered = bool(given) and all(sample.outputs for sample in given)
        if (model := recordable(artifact, found)) is not None:
            inputs = () if answered else given
            run = replace(command, format=Format.ONNX, signature=None, batched=None, golden=not answered)
            recorded = await self._record(replace(run, golden=command.golden and run.golden), model, inputs, reporter)
            signature = signature or with_batch(recorded.signature, found)
        samples = given
        if recorded is not None and not answered and signature is not None:
            samples, why = fitting_samples(recorded.samples, signature)
            notes += tuple(filter(None, (why,))) if recorded.samples else recorded.warnings
        elif given:
            require_answers(given, signature)
        inspection = Inspection(
            Format.TRITON, signature, recorded.inspection.attributes if recorded is not None else {}, CONFIG_FILE
        )
        return ArtifactFacts(
            inspection,
            signature,
            samples,
            {**(recorded.tolerances if recorded is not None and samples else {}), **command.tolerances},
            notes,
            rows_independent=recorded.rows_independent if recorded is not None and samples else None,
            config=found.config,
            members=members,
        )

    def _locate(self, upload_id: str, file: FileEntry) -> Path:
        return self._uploads.path(upload_id, file.sha256) or self._registry.fetch(file)


def _renamed(
    tolerances: dict[str, Tolerance], given: Signature | None, recorded: Signature | None
) -> dict[str, Tolerance]:
    """Return tolerances under the outputs' present names: TorchScript appends a position to each."""
    if given is None or recorded is None:
        return tolerances
    names = {old.name: new.name for old, new in zip(given.outputs, recorded.outputs, strict=True)}
    return {names.get(name, name): tolerance for name, tolerance in tolerances.items()}


def _is_servable(command: PublishCommand, artifact: Path) -> bool:
    """Return whether the artifact is clearly servable without opening it; this saves the start of a worker."""
    if command.format is not None:
        return command.format.backend is not None
    return any(artifact.glob("*.onnx"))


def split_samples(upload: Upload, samples: str | None) -> tuple[tuple[FileEntry, ...], FileEntry | None]:
    """Return the files that make up the artifact, and the one with the samples.

    Raises:
        InvalidInputError: The file does not exist, or the upload contains only the samples.
    """
    entries = [FileEntry(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes) for file in upload.files]
    if samples is None:
        return tuple(entries), None
    found = next((entry for entry in entries if entry.path == samples), None)
    if found is None:
        raise InvalidInputError(f"upload {upload.id} has no samples file {samples!r}", upload=upload.id)
    rest = tuple(entry for entry in entries if entry.path != samples)
    if not rest:
        raise InvalidInputError(
            f"upload {upload.id} contains only the samples {samples!r}; add the model's files", upload=upload.id
        )
    return rest, found
