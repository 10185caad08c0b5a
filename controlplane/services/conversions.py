"""Conversion of a version into another format, and publication of the result."""

import asyncio
from dataclasses import dataclass
from typing import Any

from controlplane.domain.manifest import FileEntry, GoldenSamples, Lineage, Manifest
from controlplane.domain.model import VersionEntry
from controlplane.domain.names import Reference, validate_alias, validate_model_name
from controlplane.domain.samples import Sample, encode_samples
from controlplane.domain.signature import Signature
from controlplane.errors import InvalidInputError, UnsupportedConversionError
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.artifact import scan
from controlplane.registry.registry import Registry
from controlplane.services.blobs import keep_bytes
from controlplane.services.operations import Operation, Operations, Reporter
from controlplane.services.sample_files import read_samples
from controlplane.services.uploads.service import Uploads
from controlplane.services.workers import Workers
from controlplane.services.workspace import Workspace, assemble
from converters.jobs import ConversionResult, ConvertJob
from converters.options import ConversionOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertCommand:
    """A conversion to run; the fields are those of the API's request."""

    actor: str
    source: str
    options: ConversionOptions
    model: str | None = None
    signature: Signature | None = None
    upload_id: str | None = None
    samples: str | None = None
    labels: dict[str, str]
    metrics: dict[str, float]
    aliases: list[str]
    reason: str = ""


class Conversions:
    """Runs conversions."""

    def __init__(
        self,
        registry: Registry,
        uploads: Uploads,
        operations: Operations,
        workers: Workers,
        workspace: Workspace,
        reconciler: Reconciler,
    ) -> None:
        self._registry = registry
        self._uploads = uploads
        self._operations = operations
        self._workers = workers
        self._workspace = workspace
        self._reconciler = reconciler

    async def start(self, command: ConvertCommand) -> Operation:
        """Check what can be checked immediately, and start the conversion.

        Raises:
            NotFoundError: The source or the upload does not exist.
            UnsupportedConversionError: Triton does not run the target format.
            InvalidInputError: A name is not valid.
        """
        reference = Reference.parse(command.source)
        validate_model_name(command.model or reference.model)
        for alias in command.aliases:
            validate_alias(alias)
        if command.options.target.backend is None:
            raise UnsupportedConversionError(
                f"cannot convert to {command.options.target.value}; the targets are onnx and torchscript"
            )
        entry = await asyncio.to_thread(self._registry.resolve, reference)
        samples = await self._samples_entry(command)

        async def work(reporter: Reporter) -> dict[str, Any]:
            if command.upload_id is None:
                return await self._convert(command, reference.model, entry, None, reporter)
            with self._uploads.use(command.upload_id):
                result = await self._convert(command, reference.model, entry, samples, reporter)
            await self._uploads.discard(command.upload_id)
            return result

        return self._operations.start("convert", work, actor=command.actor, subject=f"{reference.model}:{entry.number}")

    async def _convert(
        self,
        command: ConvertCommand,
        source_model: str,
        entry: VersionEntry,
        samples: FileEntry | None,
        reporter: Reporter,
    ) -> dict[str, Any]:
        source = await asyncio.to_thread(self._registry.manifest, source_model, entry.number)
        model = command.model or source_model
        async with self._workspace.folder() as folder:
            reporter.stage("fetch", "fetching the source", total=source.size_bytes)
            await asyncio.to_thread(
                assemble, folder / "source", source.files, lambda file: self._registry.fetch(file, reporter.moved)
            )
            given = await self._given_samples(command, source, samples)
            result = await self._workers.run(
                ConvertJob(
                    source=folder / "source",
                    signature=command.signature or source.signature,
                    format=source.format,
                    options=command.options,
                    output_dir=folder / "converted",
                    samples=given,
                ),
                reporter,
            )
            assert isinstance(result, ConversionResult)
            reporter.log(result.log)
            found = await asyncio.to_thread(scan, result.output_dir)
            local = {file.sha256: path for file, path in found}
            golden_file, path = await asyncio.to_thread(
                keep_bytes, folder / "samples.npz", encode_samples(result.samples)
            )
            local[golden_file.sha256] = path
            log_file, path = await asyncio.to_thread(
                keep_bytes, folder / "conversion.log", (result.log or "\n").encode()
            )
            local[log_file.sha256] = path
            manifest = Manifest(
                format=result.format,
                files=tuple(file for file, _ in found),
                signature=result.signature,
                golden=GoldenSamples(file=golden_file, count=len(result.samples), tolerances=result.tolerances),
                lineage=Lineage(
                    origin=source.lineage.origin if source.lineage else None,
                    source=f"{source_model}:{entry.number}",
                    converter=result.converter,
                    converter_version=result.converter_version,
                    parameters=result.parameters,
                    environment=result.environment,
                    log=log_file,
                ),
                parity=result.parity,
                rows_independent=result.rows_independent,
                attributes=result.attributes,
                metrics=command.metrics,
                labels=command.labels,
            )
            reporter.stage("upload", "writing the files to the store", total=sum(b.size_bytes for b in manifest.blobs))
            version = await asyncio.to_thread(
                lambda: self._registry.publish(
                    model,
                    manifest,
                    local,
                    actor=command.actor,
                    reason=command.reason,
                    aliases=command.aliases,
                    progress=reporter.moved,
                )
            )
        self._reconciler.wake(model)
        return {
            "model": model,
            "version": version.number,
            "reference": f"{model}:{version.number}",
            "source": f"{source_model}:{entry.number}",
            "format": version.format.value,
            "size_bytes": version.size_bytes,
            "golden_samples": len(result.samples),
            "servable": manifest.servable,
            "unservable": manifest.unservable,
            "parity": result.parity.model_dump(mode="json"),
            "seconds": result.seconds,
            "peak_memory_bytes": result.peak_memory_bytes,
            "warnings": list(result.warnings),
        }

    async def _samples_entry(self, command: ConvertCommand) -> FileEntry | None:
        if command.upload_id is None:
            return None
        upload = await self._uploads.whole(command.upload_id)
        for file in upload.files:
            if file.path == command.samples:
                return FileEntry(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)
        raise InvalidInputError(f"upload {upload.id} has no samples file {command.samples!r}", upload=upload.id)

    async def _given_samples(
        self, command: ConvertCommand, source: Manifest, samples: FileEntry | None
    ) -> tuple[Sample, ...]:
        if samples is not None and command.upload_id is not None:
            upload_id, entry = command.upload_id, samples
            return await asyncio.to_thread(
                lambda: read_samples(self._uploads.path(upload_id, entry.sha256) or self._registry.fetch(entry))
            )
        if source.golden is None:
            return ()
        # The samples recorded with the source come from its users and are better than generated noise.
        recorded = await asyncio.to_thread(self._registry.samples, source)
        return tuple(Sample(sample.inputs, {}) for sample in recorded)
