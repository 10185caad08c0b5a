"""Execution of each kind of job inside a worker."""

from collections.abc import Callable

from converters.conversion import convert
from converters.golden_samples import record, validate
from converters.inspect import inspect_artifact
from converters.jobs import ConvertJob, InspectJob, Job, Outcome, RecordJob, WorkerEvent
from converters.results import write_conversion, write_inspection, write_record

# Completed share of a job when a stage begins. The length of stages depends on the model, so this is not a forecast.
_FRACTIONS = {"inspect": 0.05, "load": 0.1, "original": 0.25, "convert": 0.4, "check": 0.8, "parity": 0.85}


def execute(job: Job, emit: Callable[[WorkerEvent], None]) -> Outcome:
    """Run a job in this process.

    Raises:
        ControlPlaneError: The job failed; exceptions of third-party libraries may also be raised unchanged.
    """

    def progress(stage: str, message: str) -> None:
        emit(WorkerEvent(stage, message, _FRACTIONS.get(stage)))

    if isinstance(job, InspectJob):
        progress("inspect", "reading the artifact")
        return Outcome(
            write_inspection(
                inspect_artifact(
                    job.source,
                    format=job.format,
                    signature=job.signature,
                    batched=job.batched,
                    trust=job.trust,
                    code=job.code,
                )
            )
        )
    if isinstance(job, ConvertJob):
        conversion = convert(job, progress)
        return Outcome(write_conversion(conversion), conversion.samples)
    if isinstance(job, RecordJob):
        recording = record(job, progress)
        return Outcome(write_record(recording), recording.samples)
    return Outcome(validate(job, progress).model_dump(mode="json"))
