"""Serialization of a worker's result as a JSON document, and reading it back."""

from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter

from controlplane.domain.manifest import Format, ParityReport
from controlplane.domain.samples import Sample
from controlplane.domain.signature import Signature
from controlplane.domain.tolerance import Tolerance
from converters.jobs import (
    ConversionResult,
    ConvertJob,
    Inspection,
    InspectJob,
    Job,
    RecordJob,
    RecordResult,
    ValidationReport,
    WorkerResult,
)

_TOLERANCES = TypeAdapter(dict[str, Tolerance])


def write_inspection(inspection: Inspection) -> dict[str, Any]:
    """Return an inspection as a JSON document."""
    document = asdict(replace(inspection, inputs=None))
    document["signature"] = inspection.signature.model_dump(mode="json") if inspection.signature else None
    return document


def write_record(result: RecordResult) -> dict[str, Any]:
    """Return a recording as a JSON document, without its samples."""
    return {
        "inspection": write_inspection(result.inspection),
        "signature": result.signature.model_dump(mode="json") if result.signature else None,
        "tolerances": _TOLERANCES.dump_python(result.tolerances, mode="json"),
        "generated": result.generated,
        "unservable": result.unservable,
        "rows_independent": result.rows_independent,
        "warnings": list(result.warnings),
        "environment": result.environment,
    }


def write_conversion(result: ConversionResult) -> dict[str, Any]:
    """Return a conversion as a JSON document, without its samples."""
    return {
        "format": result.format.value,
        "signature": result.signature.model_dump(mode="json"),
        "attributes": result.attributes,
        "tolerances": _TOLERANCES.dump_python(result.tolerances, mode="json"),
        "parity": result.parity.model_dump(mode="json"),
        "parameters": result.parameters,
        "converter": result.converter,
        "converter_version": result.converter_version,
        "environment": result.environment,
        "rows_independent": result.rows_independent,
        "warnings": list(result.warnings),
    }


def read_result(job: Job, document: dict[str, Any], samples: tuple[Sample, ...], log: str) -> WorkerResult:
    """Read a result document back.

    Raises:
        ValueError: The document is not a valid result (pydantic's validation error is a ValueError).
    """
    if isinstance(job, InspectJob):
        return _inspection(document)
    if isinstance(job, RecordJob):
        return RecordResult(
            inspection=_inspection(document["inspection"]),
            signature=_signature(document["signature"]),
            samples=samples,
            tolerances=_TOLERANCES.validate_python(document["tolerances"]),
            generated=bool(document["generated"]),
            unservable=None if document["unservable"] is None else str(document["unservable"]),
            rows_independent=_flag(document["rows_independent"]),
            warnings=tuple(map(str, document["warnings"])),
            environment=dict(document["environment"]),
            log=log,
        )
    if isinstance(job, ConvertJob):
        return ConversionResult(
            output_dir=job.output_dir,
            format=Format(document["format"]),
            signature=Signature.model_validate(document["signature"]),
            attributes=dict(document["attributes"]),
            samples=samples,
            tolerances=_TOLERANCES.validate_python(document["tolerances"]),
            parity=ParityReport.model_validate(document["parity"]),
            parameters=dict(document["parameters"]),
            converter=str(document["converter"]),
            converter_version=str(document["converter_version"]),
            environment=dict(document["environment"]),
            rows_independent=_flag(document["rows_independent"]),
            warnings=tuple(map(str, document["warnings"])),
            log=log,
        )
    return ValidationReport.model_validate({**document, "log": log})


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _inspection(document: dict[str, Any]) -> Inspection:
    return Inspection(
        format=Format(document["format"]),
        signature=_signature(document["signature"]),
        attributes=dict(document["attributes"]),
        main_file=str(document["main_file"]),
        hints=tuple(map(str, document["hints"])),
        unservable=None if document["unservable"] is None else str(document["unservable"]),
    )


def _signature(document: Any) -> Signature | None:
    return None if document is None else Signature.model_validate(document)
