"""Looking at an upload as a publish would, and publishing nothing."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.domain.manifest import FileEntry, Format
from controlplane.domain.samples import Sample
from controlplane.domain.signature import Signature
from controlplane.registry.registry import Registry
from controlplane.services.operations import Operation, Operations, Reporter
from controlplane.services.publishing import split_samples
from controlplane.services.sample_files import read_samples
from controlplane.services.uploads import Uploads
from controlplane.services.workers import Workers
from controlplane.services.workspace import Workspace, assemble
from converters.jobs import ValidateJob, ValidationReport
from converters.options import SamplingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateCommand:
    """What to look at; the fields are those of the API's request."""

    actor: str
    upload_id: str
    format: Format | None = None
    signature: Signature | None = None
    samples: str | None = None
    sample_count: int = 1
    seed: int = 0
    trust: bool = False


class Validation:
    """Validates uploads."""

    def __init__(
        self, registry: Registry, uploads: Uploads, operations: Operations, workers: Workers, workspace: Workspace
    ) -> None:
        self._registry = registry
        self._uploads = uploads
        self._operations = operations
        self._workers = workers
        self._workspace = workspace

    async def start(self, command: ValidateCommand) -> Operation:
        """Start a validation. The upload stays, so that it can be published afterwards.

        Raises:
            NotFoundError: No such upload.
            ConflictError: The upload is not complete.
            InvalidInputError: It has no such samples file.
        """
        upload = await self._uploads.whole(command.upload_id)
        files, samples = split_samples(upload, command.samples)

        async def work(reporter: Reporter) -> dict[str, Any]:
            with self._uploads.use(upload.id):
                return await self._validate(command, files, samples, reporter)

        return self._operations.start("validate", work, actor=command.actor, subject=upload.id)

    async def _validate(
        self, command: ValidateCommand, files: tuple[FileEntry, ...], samples: FileEntry | None, reporter: Reporter
    ) -> dict[str, Any]:
        async with self._workspace.folder() as folder:
            reporter.stage("prepare", "putting the files together")
            await asyncio.to_thread(
                assemble, folder / "artifact", files, lambda file: self._locate(command.upload_id, file)
            )
            given: tuple[Sample, ...] = ()
            if samples is not None:
                given = await asyncio.to_thread(lambda: read_samples(self._locate(command.upload_id, samples)))
            report = await self._workers.run(
                ValidateJob(
                    source=folder / "artifact",
                    signature=command.signature,
                    format=command.format,
                    sampling=SamplingOptions(seed=command.seed, sample_count=command.sample_count),
                    samples=given,
                    trust=command.trust,
                ),
                reporter,
            )
            assert isinstance(report, ValidationReport)
            reporter.log(report.log)
            return report.model_dump(mode="json", exclude={"log"})

    def _locate(self, upload_id: str, file: FileEntry) -> Path:
        return self._uploads.path(upload_id, file.sha256) or self._registry.fetch(file)
