"""Checks an upload or a published version as a publication would, without publishing anything."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from controlplane.domain.access import Principal, may_bring_code
from controlplane.domain.manifest import FileEntry, Format
from controlplane.domain.model_directory import CONFIG_FILE
from controlplane.domain.names import Reference
from controlplane.domain.portability import Loads, ModelFacts, summary
from controlplane.domain.samples import Sample
from controlplane.domain.signature import Signature
from controlplane.errors import ForbiddenError, InvalidArtifactError, InvalidInputError
from controlplane.registry.registry import Registry
from controlplane.services.model_directories import as_stored, read_directory, recordable
from controlplane.services.operations import Operation, Operations, Reporter
from controlplane.services.portability import Portability
from controlplane.services.publishing import split_samples
from controlplane.services.sample_files import read_samples
from controlplane.services.uploads.service import Uploads
from controlplane.services.workers import Workers
from controlplane.services.workspace import Workspace, assemble
from converters.jobs import ValidateJob, ValidationCheck, ValidationReport
from converters.options import SamplingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateCommand:
    """An upload or a version to validate; the fields are those of the API's request."""

    actor: str
    asker: Principal | None
    upload_id: str | None = None
    reference: str | None = None
    format: Format | None = None
    signature: Signature | None = None
    batched: bool | None = None
    samples: str | None = None
    sample_count: int = 1
    seed: int = 0
    trust: bool = False
    targets: tuple[str, ...] = ()


class Validation:
    """Validates uploads and versions."""

    def __init__(
        self,
        registry: Registry,
        uploads: Uploads,
        operations: Operations,
        workers: Workers,
        workspace: Workspace,
        portability: Portability,
    ) -> None:
        self._registry = registry
        self._uploads = uploads
        self._operations = operations
        self._workers = workers
        self._workspace = workspace
        self._portability = portability

    async def start(self, command: ValidateCommand) -> Operation:
        """Start a validation. The upload is kept, so that it can be published afterwards.

        A version is read from the bucket again, with every byte verified, and run on the inputs of its own golden
        samples.

        Raises:
            NotFoundError: The upload, the model or the version does not exist.
            ConflictError: The upload is not complete.
            InvalidInputError: It has no such samples file, or neither or both of upload and reference are given, or a
                target is unknown.
        """
        self._portability.targets(command.targets)
        if command.reference is not None and command.upload_id is None:
            return await self._start_version(command, Reference.parse(command.reference))
        if command.upload_id is None or command.reference is not None:
            raise InvalidInputError("give either upload_id or reference")
        upload = await self._uploads.whole(command.upload_id)
        files, samples = split_samples(upload, command.samples)

        def uploaded(file: FileEntry) -> Path | None:
            return self._uploads.path(upload.id, file.sha256)

        async def work(reporter: Reporter) -> dict[str, Any]:
            with self._uploads.use(upload.id):
                given: tuple[Sample, ...] = ()
                if samples is not None:
                    given = await asyncio.to_thread(
                        lambda: read_samples(uploaded(samples) or self._registry.fetch(samples))
                    )
                return await self._validate(command, files, uploaded, given, reporter)

        return self._operations.start("validate", work, actor=command.actor, subject=upload.id)

    async def _start_version(self, command: ValidateCommand, reference: Reference) -> Operation:
        if command.samples is not None:
            raise InvalidInputError("samples is only for an upload; a version is validated with its own golden samples")
        entry = await asyncio.to_thread(self._registry.resolve, reference)
        manifest = await asyncio.to_thread(self._registry.manifest, reference.model, entry.number)
        as_published = replace(
            command,
            format=command.format or manifest.format,
            signature=command.signature or manifest.signature,
        )

        subject = f"{reference.model}:{entry.number}"

        async def work(reporter: Reporter) -> dict[str, Any]:
            reporter.stage("read", "reading the stored files", total=sum(blob.size_bytes for blob in manifest.blobs))
            await asyncio.to_thread(self._registry.require_intact, subject, manifest, reporter.moved)
            given = await asyncio.to_thread(self._registry.samples, manifest)
            return await self._validate(as_published, manifest.files, lambda _file: None, given, reporter)

        return self._operations.start("validate", work, actor=command.actor, subject=subject)

    async def _validate(
        self,
        command: ValidateCommand,
        files: tuple[FileEntry, ...],
        uploaded: Callable[[FileEntry], Path | None],
        given: tuple[Sample, ...],
        reporter: Reporter,
    ) -> dict[str, Any]:
        directory = as_stored(files, command.format)
        async with self._workspace.folder() as folder:
            reporter.stage("prepare", "assembling the files")
            artifact = folder / "artifact"
            await asyncio.to_thread(assemble, artifact, directory or files, self._registry.fetch, uploaded)
            backend = ""
            if directory is not None:
                report, backend = await self._directory(command, artifact, directory, reporter)
            else:
                report = await self._run(command, artifact, given, reporter)
            reporter.log(report.log)
            return self._with_portability(report, command.targets, backend).model_dump(mode="json", exclude={"log"})

    def _with_portability(self, report: ValidationReport, names: tuple[str, ...], backend: str) -> ValidationReport:
        """Add the check of the targets; it fails only if a target that the caller named cannot load the version."""
        if report.format is None:
            return report
        started = time.monotonic()
        unservable = next((check.message for check in report.checks if check.name == "servable" and not check.ok), None)
        facts = ModelFacts.of(report.format, report.attributes, report.signature, unservable, backend)
        found = self._portability.check(facts, names)
        if not report.ok:  # the first failed check is the last
            return report.model_copy(update={"portability": found})
        refused = [one for one in found if one.loads is Loads.NO] if names else []
        message = "; ".join(f"{one.target}: {'; '.join(one.reasons)}" for one in refused) or summary(found)
        check = ValidationCheck(
            name="portability", ok=not refused, message=message, seconds=round(time.monotonic() - started, 4)
        )
        return report.model_copy(update={"ok": check.ok, "checks": (*report.checks, check), "portability": found})

    async def _directory(
        self, command: ValidateCommand, artifact: Path, files: tuple[FileEntry, ...], reporter: Reporter
    ) -> tuple[ValidationReport, str]:
        """Check a model directory's configuration and, for ONNX, its model file; return the report and the backend."""
        began = time.monotonic()
        try:
            # The key that published the version had the permission.
            found = await read_directory(artifact, files, None if command.reference is not None else command.asker)
        except (InvalidArtifactError, ForbiddenError) as error:
            check = _configuration(error.message, began, ok=False)
            return ValidationReport(ok=False, checks=(check,)), ""
        checks: tuple[ValidationCheck, ...] = (
            _configuration(f"{CONFIG_FILE} is valid, for the backend {found.backend}", began, ok=True),
        )
        attributes: dict[str, JsonValue] = {}
        if (model := recordable(artifact, found)) is not None:
            as_onnx = replace(command, format=Format.ONNX, signature=None, batched=None)
            report = await self._run(as_onnx, model, (), reporter)
            checks, attributes = (*checks, *report.checks), report.attributes
        whole = ValidationReport(
            ok=all(check.ok for check in checks),
            checks=checks,
            format=Format.TRITON,
            signature=found.signature or command.signature,
            attributes=attributes,
            hints=found.notes,
        )
        return whole, found.backend

    async def _run(
        self, command: ValidateCommand, source: Path, given: tuple[Sample, ...], reporter: Reporter
    ) -> ValidationReport:
        report = await self._workers.run(
            ValidateJob(
                source=source,
                signature=command.signature,
                batched=command.batched,
                format=command.format,
                sampling=SamplingOptions(seed=command.seed, sample_count=command.sample_count),
                samples=given,
                trust=command.trust,
                # The key that published the version had the permission.
                code=command.reference is not None or may_bring_code(command.asker),
            ),
            reporter,
        )
        assert isinstance(report, ValidationReport)
        return report


def _configuration(message: str, began: float, *, ok: bool) -> ValidationCheck:
    return ValidationCheck(name="configuration", ok=ok, message=message, seconds=time.monotonic() - began)
