"""`text-pipeline`: a tokenizer as a Python model, and an ensemble of it and a model of tokens."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from controlplane.cli.output import Output
from controlplane.cli.progress import Bar
from controlplane.cli.references import fetch_version, version_path
from controlplane.cli.workflows.deploy import Change, apply, merged_settings, present_deployment
from controlplane.cli.workflows.pull import download
from controlplane.cli.workflows.push import PublishOptions, publish
from controlplane.client.http import Client
from controlplane.client.models import Deployment, VersionDetail
from controlplane.domain.model_directory import CONFIG_FILE
from controlplane.domain.names import Reference, validate_model_name
from controlplane.domain.samples import Sample, decode_samples, encode_samples
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.errors import InvalidInputError

TEXT = "text"
EMBEDDING = "sentence_embedding"
_FOLDER = "tokenizer/"
_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
_TYPES = {DataType.BYTES: "TYPE_STRING"}
_FILES = ("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json", "config.json", "texts.json")
_DEFAULT_BATCH = 8
"""The batch size of a deployment that sets none."""
_DEFAULT_LENGTH = 512
_LONGEST = 1_000_000
"""A larger ``model_max_length`` means that the tokenizer knows no limit."""


@dataclass(frozen=True, slots=True)
class TextPipeline:
    """A published pipeline.

    Attributes:
        model: The version of the model of tokens.
        tokenizer: The result of the tokenizer's publication.
        ensemble: The result of the ensemble's publication.
    """

    model: Reference
    tokenizer: Mapping[str, Any]
    ensemble: Mapping[str, Any]


def publish_pipeline(
    client: Client, ref: str, name: str | None, data_dir: Path, out: Output, *, reason: str = ""
) -> TextPipeline:
    """Publish a tokenizer and an ensemble for a version that has tokenizer files.

    Args:
        client: The control plane.
        ref: The version of the model of tokens.
        name: Name of the ensemble; None for ``MODEL-text``. The tokenizer is ``NAME-tokenizer``.
        data_dir: The data folder.
        out: Shows the progress and notes.
        reason: Why, for the history.

    Raises:
        InvalidInputError: The version has no tokenizer, or inputs that a tokenizer does not give.
    """
    detail = fetch_version(client, ref)
    signature = _check(detail)
    fixed = Reference(detail.model, version=detail.entry.number)
    name = validate_model_name(name or f"{detail.model}-text")
    tokenizer = validate_model_name(f"{name}-tokenizer")
    deployment = present_deployment(client, detail.model)
    batch = _batch(signature, deployment)
    with tempfile.TemporaryDirectory(prefix="tritonctl-text-") as temporary:
        work = Path(temporary)
        _fetch(client, fixed, detail, work / "files", out)
        directory = work / "tokenizer"
        _write_tokenizer(directory, work / "files", signature, batch)
        outputs = _outputs(signature)
        ensemble = work / "ensemble"
        ensemble.mkdir()
        (ensemble / CONFIG_FILE).write_text(_ensemble(detail.model, tokenizer, signature, outputs, batch))
        samples = _samples(client, fixed, detail, work / "files" / "texts.json")
        if not samples:
            out.note(f"note: no golden samples: {fixed} does not say which texts its samples are from", style="yellow")
        options = PublishOptions(reason=reason, version_folder=1)
        tokens = tuple(Sample(sample.inputs, ids) for sample, ids, _ in samples)
        results = tuple(
            Sample(one.inputs, {spec.name: answers[spec.name] for spec in outputs}) for one, _, answers in samples
        )
        return TextPipeline(
            fixed,
            publish(client, tokenizer, directory, _with_samples(options, tokens, work / "tokens.npz"), data_dir, out),
            publish(
                client,
                name,
                ensemble,
                _with_samples(PublishOptions(reason=reason), results, work / "results.npz"),
                data_dir,
                out,
            ),
        )


def deploy_pipeline(
    client: Client, pipeline: TextPipeline, out: Output, *, reason: str = ""
) -> tuple[Deployment, float]:
    """Deploy the members on demand, unless they are deployed, and the ensemble; return it and the seconds it took."""
    tokenizer = Reference.parse(str(pipeline.tokenizer["reference"]))
    for member in (pipeline.model, tokenizer):
        present = present_deployment(client, member.model)
        if present is None or (member is tokenizer and present.spec.version != member.version):
            settings = {"mode": "on-demand"} if present is None else None
            _put(client, member, settings, out, reason)
    members = {pipeline.model.model: pipeline.model.version, tokenizer.model: tokenizer.version}
    ensemble = Reference.parse(str(pipeline.ensemble["reference"]))
    return _put(client, ensemble, merged_settings(client, ensemble.model, {"members": members}), out, reason)


def _put(
    client: Client, version: Reference, settings: dict[str, Any] | None, out: Output, reason: str
) -> tuple[Deployment, float]:
    body = {"reference": str(version), "reason": reason} | ({"settings": settings} if settings else {})
    return apply(client, out, version.model, Change("PUT", body=body), wait=True)


def _check(detail: VersionDetail) -> Signature:
    where, signature = f"{detail.model}:{detail.entry.number}", detail.manifest.signature
    if not detail.manifest.format.runs or signature is None:
        raise InvalidInputError(
            f"{where} is not a version that Triton runs; convert it: tritonctl convert {where} --to onnx"
        )
    if not any(file.path == f"{_FOLDER}tokenizer.json" for file in detail.manifest.files):
        raise InvalidInputError(
            f"{where} has no file {_FOLDER}tokenizer.json; convert the model with its fast tokenizer, or add the "
            "file to the folder that you push"
        )
    unknown = [spec.name for spec in signature.inputs if spec.name not in _TOKENS]
    if unknown or not signature.inputs:
        raise InvalidInputError(
            f"{where} has the input {unknown[0] if unknown else 'none'!r}; a tokenizer gives {', '.join(_TOKENS)}"
        )
    if {spec.name for spec in signature.outputs} >= {"start_logits", "end_logits"}:
        raise InvalidInputError(
            f"{where} answers questions about a text, so it takes two texts; a text pipeline takes one"
        )
    return signature


def _batch(signature: Signature, deployment: Deployment | None) -> int:
    """Return the largest batch of the ensemble, which must not exceed the model's; 0 without batching."""
    given = deployment.spec.settings.max_batch_size if deployment else None
    return (given if given is not None else _DEFAULT_BATCH) if signature.batched else 0


def _outputs(signature: Signature) -> tuple[TensorSpec, ...]:
    """Return the outputs of the ensemble: the embedding alone if there is one, since others need the mask."""
    return tuple(spec for spec in signature.outputs if spec.name == EMBEDDING) or signature.outputs


def _fetch(client: Client, version: Reference, detail: VersionDetail, folder: Path, out: Output) -> None:
    wanted = [file for file in detail.manifest.files if file.path in {f"{_FOLDER}{name}" for name in _FILES}]
    with Bar(out) as bar:
        bar.stage(f"reading the tokenizer of {version}", total=sum(file.size_bytes for file in wanted))
        for file in wanted:
            url = f"{version_path(version)}/files/{quote(file.path)}"
            download(client, url, file, folder / file.path.removeprefix(_FOLDER), bar)


def _write_tokenizer(directory: Path, files: Path, signature: Signature, batch: int) -> None:
    version = directory / "1"
    version.mkdir(parents=True)
    (version / "tokenizer.json").write_bytes((files / "tokenizer.json").read_bytes())
    (version / "settings.json").write_text(json.dumps(_settings(files), indent=2) + "\n")
    template = resources.files("controlplane.cli.templates") / "tokenizer.py"
    (version / "model.py").write_bytes(template.read_bytes())
    (directory / CONFIG_FILE).write_text(
        f'backend: "python"\nmax_batch_size: {batch}\n'
        f"input [ {_text(batch)} ]\n"
        f"output [ {', '.join(_tensor(spec, batch) for spec in signature.inputs)} ]\n"
        "instance_group [ { kind: KIND_CPU } ]\n"
    )


def _settings(files: Path) -> dict[str, Any]:
    """Return the length of the longest text in tokens and the padding, as transformers would use them."""
    tokenizer, config = _json(files / "tokenizer.json"), _json(files / "tokenizer_config.json")
    limits = [_json(files / "sentence_bert_config.json").get("max_seq_length"), config.get("model_max_length")]
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < _LONGEST]
    positions = _json(files / "config.json").get("max_position_embeddings")
    length = min(known) if known else positions if isinstance(positions, int) else _DEFAULT_LENGTH
    token: Any = config.get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    padding = tokenizer.get("padding") or {}
    token = token or padding.get("pad_token") or ""
    model = tokenizer.get("model") or {}
    added = {one.get("content"): one.get("id") for one in tokenizer.get("added_tokens") or ()}
    vocabulary = model.get("vocab")
    found = added.get(token, vocabulary.get(token) if isinstance(vocabulary, dict) else None)
    return {
        "max_length": length,
        "padding": {
            "direction": "left" if config.get("padding_side") == "left" else "right",
            # Where the mask is 0, the token does not matter.
            "pad_id": found if isinstance(found, int) else int(padding.get("pad_id") or 0),
            "pad_token": token,
        },
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _ensemble(model: str, tokenizer: str, signature: Signature, outputs: tuple[TensorSpec, ...], batch: int) -> str:
    tokens = "\n".join(f'    output_map {{ key: "{spec.name}" value: "{spec.name}" }}' for spec in signature.inputs)
    return (
        f'platform: "ensemble"\nmax_batch_size: {batch}\n'
        f"input [ {_text(batch)} ]\n"
        f"output [ {', '.join(_tensor(spec, batch) for spec in outputs)} ]\n"
        "ensemble_scheduling {\n"
        f'  step {{\n    model_name: "{tokenizer}"\n    model_version: -1\n'
        f'    input_map {{ key: "{TEXT}" value: "{TEXT}" }}\n{tokens}\n  }}\n'
        f'  step {{\n    model_name: "{model}"\n    model_version: -1\n{tokens.replace("output_map", "input_map")}\n'
        + "\n".join(f'    output_map {{ key: "{spec.name}" value: "{spec.name}" }}' for spec in outputs)
        + "\n  }\n}\n"
    )


def _text(batch: int) -> str:
    return f'{{ name: "{TEXT}" data_type: TYPE_STRING dims: [ {1 if batch else -1} ] }}'


def _tensor(spec: TensorSpec, batch: int) -> str:
    dims = list(spec.shape[1:] if batch else spec.shape) or [1]
    kind = _TYPES.get(spec.dtype, f"TYPE_{spec.dtype.value}")
    return f'{{ name: "{spec.name}" data_type: {kind} dims: {dims} }}'


_Triple = tuple[Sample, Mapping[str, Any], Mapping[str, Any]]


def _samples(client: Client, version: Reference, detail: VersionDetail, file: Path) -> list[_Triple]:
    """Return texts with the tokens and the answers that the original model gave for them."""
    if detail.manifest.golden is None or not file.is_file():
        return []
    recorded = decode_samples(client.call("GET", f"{version_path(version)}/samples").content)
    try:
        known = [(one["texts"], np.array(one["input_ids"])) for one in json.loads(file.read_bytes())]
    except (ValueError, KeyError, TypeError):
        return []
    found: list[_Triple] = []
    for sample in recorded:
        ids = np.asarray(sample.inputs["input_ids"])
        texts = next((texts for texts, tokens in known if np.array_equal(tokens, ids)), None)
        if texts is not None:
            array = np.array([text.encode() for text in texts], dtype=object)
            shaped = array.reshape(-1, 1) if detail.manifest.signature and detail.manifest.signature.batched else array
            found.append((Sample({TEXT: shaped}, {}), sample.inputs, sample.outputs))
    return found


def _with_samples(options: PublishOptions, samples: tuple[Sample, ...], file: Path) -> PublishOptions:
    if not samples:
        return options
    file.write_bytes(encode_samples(samples))
    return replace(options, samples=file)
