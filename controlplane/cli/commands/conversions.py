"""Conversion and validation."""

from contextlib import ExitStack
from typing import Annotated, Any, Literal

import typer

from controlplane.cli import completion
from controlplane.cli.commands.models import TargetOption
from controlplane.cli.commands.push import (
    PANEL,
    AliasOption,
    BatchedOption,
    FormatOption,
    InputOption,
    LabelOption,
    MetricOption,
    OutputSpecOption,
    ReasonOption,
    SamplesOption,
    TrustOption,
)
from controlplane.cli.session import Session, command

_GROUPS = {
    "Tensors and samples": (
        "input_",
        "output_spec",
        "batched",
        "dynamic",
        "samples",
        "sample_count",
        "seed",
    ),
    "PyTorch": (
        "factory",
        "method",
        "trust",
    ),
    "ONNX": ("opset",),
    "Published version": (
        "name",
        "label",
        "metric",
        "alias",
        "reason",
    ),
}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "convert",
        panel=PANEL,
        examples=(
            "tritonctl convert vad:1 --to onnx",
            "tritonctl convert resnet:3 --to onnx --precision int8 --name resnet-int8",
            "tritonctl convert net.pt2 --to torchscript",
            "tritonctl convert hf://sentence-transformers/all-MiniLM-L6-v2 --to onnx --name minilm",
            "tritonctl convert mlflow://models:/churn/3 --to onnx --name churn",
            'tritonctl convert net.safetensors --to onnx --factory mynets:build --trust --input "x:FP32\\[-1,16]"',
        ),
        groups=_GROUPS,
    )(convert)
    command(
        app,
        "validate",
        panel=PANEL,
        examples=("tritonctl validate model.onnx", "tritonctl validate vad:7 --target 26.08"),
    )(validate)


def convert(
    session: Session,
    source: Annotated[
        str,
        typer.Argument(
            metavar="REF|PATH|URI",
            help="A published version, a file or folder on this machine, or a URI as of `push`.",
            autocompletion=completion.models,
        ),
    ],
    to: Annotated[Literal["onnx", "torchscript"], typer.Option("--to", help="Target format.")],
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", help="Model to publish the result under. Default: the model of the source."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="ONNX opset of the result. Default: chosen by the converter.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option("--precision", help="Precision of the weights.")
    ] = "fp32",
    factory: Annotated[
        str | None,
        typer.Option(
            "--factory",
            metavar="PACKAGE.MODULE:FUNCTION",
            help="Function that returns the PyTorch module for a file that has only weights. Needs --trust.",
        ),
    ] = None,
    method: Annotated[
        Literal["trace", "script"] | None,
        typer.Option(
            "--method",
            help="How to convert a module to TorchScript: trace (default), or script, which keeps control flow.",
        ),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            "--dynamic",
            metavar="INPUT=DIM,…",
            help="Dimensions of an input that stay dynamic, for example x=0,2. Repeatable.",
        ),
    ] = None,
    input_: InputOption = None,
    output_spec: OutputSpecOption = None,
    batched: BatchedOption = None,
    samples: SamplesOption = None,
    sample_count: Annotated[
        int | None, typer.Option("--sample-count", min=1, max=64, help="Number of samples to generate. Default: 3.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the generated samples. Default: 0.")
    ] = None,
    label: LabelOption = None,
    metric: MetricOption = None,
    alias: AliasOption = None,
    reason: ReasonOption = "",
    trust: TrustOption = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0, help="Maximum seconds to wait; then exit code 8. Default: no limit.", show_default=False
        ),
    ] = None,
) -> None:
    """Convert a version to another format, and publish the result if its outputs agree with the original's.

    The original and the result are run on the same samples; the largest errors are shown and recorded. If an error
    exceeds the tolerance, nothing is published. A file on this machine is published first and then converted.
    """
    from controlplane.cli.views.version import show_parity, show_result
    from controlplane.cli.workflows.convert import Conversion, convert_and_publish, is_file
    from controlplane.cli.workflows.push import figures, key_values
    from controlplane.cli.workflows.sources import local_artifact
    from controlplane.cli.workflows.tensors import parse_axes, parse_signature, parse_spec
    from controlplane.domain.manifest import ParityReport

    options: dict[str, Any] = {
        "target": to,
        "precision": precision,
        "opset": opset,
        "factory": factory,
        "method": method,
        "dynamic_axes": parse_axes(dynamic or []),
        "sample_count": sample_count,
        "seed": seed,
        "trust": trust or None,
    }
    signature = None
    if input_ and not output_spec:
        # Running the original determines the outputs.
        options["inputs"] = [parse_spec(text).model_dump(mode="json") for text in input_]
        options["batched"] = batched
    else:
        signature = parse_signature(input_ or (), output_spec or (), batched=bool(batched))
        options["batched"] = batched if signature is None else None
    conversion = Conversion(
        target=to,
        options={key: value for key, value in options.items() if value is not None},
        model=name,
        signature=signature.model_dump(mode="json") if signature else None,
        samples=samples,
        labels=key_values(label or [], "--label"),
        metrics=figures(metric or []),
        aliases=tuple(alias or ()),
        reason=reason,
    )
    out = session.out()
    with session.client() as client, ExitStack() as stack:
        local = stack.enter_context(local_artifact(source, session.folder(), out)) if is_file(source) else None
        result = convert_and_publish(client, source, local, conversion, session.folder(), out, timeout=timeout)
    out.result(result)
    show_result(out, result)
    if result.get("parity"):
        show_parity(out, ParityReport.model_validate(result["parity"]))


def validate(
    session: Session,
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH|URI|REF", help="A file or folder on this machine, a URI as of `push`, or a published version."
        ),
    ],
    input_: InputOption = None,
    output_spec: OutputSpecOption = None,
    batched: BatchedOption = None,
    format_: FormatOption = None,
    samples: SamplesOption = None,
    target: TargetOption = None,
    trust: TrustOption = False,
) -> None:
    """Check a file or folder as `push` does, or check a published version again, without publishing anything.

    The last check compares it with the servers of the control plane, an embedded server and NVIDIA's images. With
    --target it must load on the named ones, or the exit code is 6.
    """
    from controlplane.cli.views.version import show_validation
    from controlplane.cli.workflows.convert import is_artifact, validate_artifact, validate_version
    from controlplane.cli.workflows.sources import local_artifact
    from controlplane.cli.workflows.tensors import parse_signature
    from controlplane.client.errors import OperationFailedError

    signature = parse_signature(input_ or (), output_spec or (), batched=bool(batched))
    body = {
        "format": format_,
        "batched": None if signature else batched,
        "signature": signature.model_dump(mode="json") if signature else None,
        "trust": trust,
        "targets": target,
    }
    out = session.out()
    with session.client() as client:
        if is_artifact(source):
            with local_artifact(source, session.folder(), out) as local:
                report = validate_artifact(client, local.path, samples, body, session.folder(), out)
        else:
            report = validate_version(client, source, samples, body, out)
    out.result(report)
    show_validation(out, source, report)
    if not report["ok"]:
        failed = [check for check in report["checks"] if not check["ok"]]
        raise OperationFailedError(
            f"{source} cannot be served: {failed[0]['message'] if failed else 'a check failed'}",
            code="invalid-artifact",
        )
