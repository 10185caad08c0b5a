"""Publication of a version."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.session import Session, command
from controlplane.domain.names import VERSION_MAX

PANEL = "Publish and convert"

InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help='An input as "NAME:DTYPE[SHAPE]", with -1 for a dynamic dimension. Repeatable.',
        show_default=False,
    ),
]
OutputSpecOption = Annotated[
    list[str] | None,
    typer.Option("--out", help="An output, in the same form as --input. Repeatable.", show_default=False),
]
BatchedOption = Annotated[
    bool | None,
    typer.Option(
        "--batched/--no-batched",
        help="Whether the first dimension of every tensor is the batch.",
        show_default="according to the file",
    ),
]
SamplesOption = Annotated[
    Path | None,
    typer.Option("--samples", help="Sample inputs: an .npz file with one array for each input.", show_default=False),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="onnx, torchscript, torch-export, pytorch, sklearn, xgboost, lightgbm, transformers or triton. Default: "
        "detected.",
        show_default=False,
    ),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="KEY=VALUE", help="Label of the version. Repeatable.", show_default=False),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option("--metric", "-m", metavar="KEY=NUMBER", help="Metric of the version. Repeatable.", show_default=False),
]
AliasOption = Annotated[
    list[str] | None,
    typer.Option("--alias", "-a", help="Alias to point to the new version. Repeatable.", show_default=False),
]
ReasonOption = Annotated[
    str, typer.Option("--reason", "-r", help="Reason for the change, recorded in the history.", show_default=False)
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Allow code embedded in the file (pickle, factories) to run. Use only with files you trust.",
        show_default=False,
    ),
]

_GROUPS = {
    "Tensors and samples": (
        "input_",
        "output_spec",
        "batched",
        "samples",
        "sample_count",
        "seed",
        "golden",
    ),
    "Published version": (
        "number",
        "label",
        "metric",
        "alias",
        "reason",
        "depends_on",
        "sign_key",
        "force",
    ),
    "Files": (
        "format_",
        "version",
        "direct",
        "trust",
    ),
}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "push",
        panel=PANEL,
        examples=(
            "tritonctl push resnet50.onnx",
            "tritonctl push resnet ./exported-folder --alias staging --metric top1=0.76",
            'tritonctl push vad vad.pt --input "input:FP32\\[-1,512]" --out "output:FP32\\[-1,1]" --batched',
            "tritonctl push vad vad.pt --samples speech.npz --batched",
            "tritonctl push resnet resnet50.onnx --deploy",
            "tritonctl push tokenizer ./model_repository/tokenizer --version 3",
            "tritonctl push router ./model_repository/router --depends-on small --depends-on large",
            "tritonctl push resnet resnet50.onnx --sign-key release.pem",
            "tritonctl push vad mlflow://models:/vad@champion",
        ),
        groups=_GROUPS,
    )(push)


def push(
    session: Session,
    name_or_path: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH|URI",
            help="Name of the model. Without a second argument: what to publish, which also names the model.",
        ),
    ],
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH|URI",
            help="File or folder to publish, or a URI: mlflow://models:/NAME@ALIAS or hf://ORG/MODEL.",
            show_default=False,
        ),
    ] = None,
    input_: InputOption = None,
    output_spec: OutputSpecOption = None,
    batched: BatchedOption = None,
    format_: FormatOption = None,
    samples: SamplesOption = None,
    sample_count: Annotated[
        int | None, typer.Option("--sample-count", min=1, max=64, help="Number of samples to generate. Default: 3.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the generated samples. Default: 0.")
    ] = None,
    golden: Annotated[
        bool, typer.Option("--golden/--no-golden", help="Run the model and record its outputs as golden samples.")
    ] = True,
    label: LabelOption = None,
    metric: MetricOption = None,
    alias: AliasOption = None,
    reason: ReasonOption = "",
    version: Annotated[
        int | None,
        typer.Option(
            "--version",
            min=1,
            help="Version folder to publish, for a model directory (config.pbtxt) that has several.",
            show_default=False,
        ),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--number",
            min=1,
            max=VERSION_MAX,
            help="Number of the new version. Default: the model's next number.",
            show_default=False,
        ),
    ] = None,
    depends_on: Annotated[
        list[str] | None,
        typer.Option(
            "--depends-on",
            metavar="NAME",
            help="Model that a Python model calls; it becomes a member of the pipeline. Repeatable.",
            show_default=False,
        ),
    ] = None,
    trust: TrustOption = False,
    direct: Annotated[
        bool,
        typer.Option("--direct", help="Upload the files directly to the bucket (S3), not through the control plane."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Publish a new version even if it equals the newest one.")
    ] = False,
    sign_key: Annotated[
        Path | None,
        typer.Option(
            "--sign-key",
            help="Sign the new version with this private key (PEM). Set TRITONCTL_SIGN_KEY_PASSWORD if the key has a "
            "password.",
            show_default=False,
        ),
    ] = None,
    deploy: Annotated[
        bool, typer.Option("--deploy", help="Deploy the new version and wait until it is active.")
    ] = False,
) -> None:
    """Publish a file or folder as a new version of a model; the folder may be a model directory of Triton.

    With a URI, the model is downloaded first, and the version keeps its origin. Servers and credentials are the
    variables of MLflow (MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN, …) and of Hugging Face (HF_TOKEN, …).

    The control plane detects the format, runs the model once and records its outputs; when the version is deployed,
    Triton's outputs are compared with them. If a push is interrupted, run it again to resume it.
    """
    from controlplane.cli.views.version import show_result
    from controlplane.cli.workflows.push import PublishOptions, figures, key_values, model_name, publish, version_folder
    from controlplane.cli.workflows.sources import local_artifact
    from controlplane.cli.workflows.tensors import parse_signature
    from controlplane.domain.names import validate_model_name

    name = None if path is None else validate_model_name(name_or_path)
    signature = parse_signature(input_ or (), output_spec or (), batched=bool(batched))
    options = PublishOptions(
        format=format_,
        signature=signature.model_dump(mode="json") if signature else None,
        batched=None if signature else batched,
        samples=samples,
        sample_count=sample_count,
        seed=seed,
        golden=golden,
        labels=key_values(label or [], "--label"),
        metrics=figures(metric or []),
        aliases=tuple(alias or ()),
        reason=reason,
        trust=trust,
        direct=direct,
        force=force,
        number=number,
        depends_on=tuple(depends_on or ()),
    )
    out = session.out()
    if sign_key is not None:
        from controlplane.cli.workflows.sign import check_key

        check_key(sign_key)
    what = name_or_path if path is None else path
    with session.client() as client, local_artifact(what, session.folder(), out, named=path is not None) as local:
        name = name or model_name(local.name)
        options = replace(options, origin=local.origin, version_folder=version_folder(local.path, version))
        result = publish(client, name, local.path, options, session.folder(), out)
        if sign_key is not None:
            from controlplane.cli.references import fetch_version
            from controlplane.cli.workflows.sign import local_digests, sign_version

            detail = fetch_version(client, f"{name}:{result['version']}")
            digests = local_digests(local.path, out, version_folder=options.version_folder)
            result["signature"] = sign_version(client, detail, sign_key, local=digests)
        if not deploy:
            out.result(result)
        show_result(out, result)
        if sign_key is not None:
            out.line(f"signed {result['reference']} with the key {result['signature']['key'][:16]}")
        if deploy:
            from controlplane.cli.workflows.deploy import deploy_and_wait

            deploy_and_wait(client, out, f"{name}:{result['version']}", reason=reason)
