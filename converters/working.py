"""What a worker does with each kind of job."""

from collections.abc import Callable

from converters.conversion import convert
from converters.golden_samples import record, validate
from converters.inspect import inspect_artifact
from converters.jobs import ConvertJob, InspectJob, Job, Outcome, RecordJob, WorkerEvent
from converters.results import write_conversion, write_inspection, write_record

# How far a job is when a stage begins. Stages differ in length by model, so this is an order and no forecast.
_FRACTIONS = {"inspect": 0.05, "load": 0.1, "original": 0.25, "convert": 0.4, "check": 0.8, "parity": 0.85}


def execute(job: Job, emit: Callable[[WorkerEvent], None]) -> Outcome:
    """Do a job in this process.

    Raises:
        ControlPlaneError: What went wrong; third parties' exceptions may come through as they are.
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
