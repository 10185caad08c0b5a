import pytest
from pydantic import ValidationError

from controlplane.domain.manifest import FileEntry, Format, GoldenSamples, Lineage, Manifest
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.errors import InvalidNameError


def entry(path: str, digit: str = "0", size_bytes: int = 1) -> FileEntry:
    return FileEntry(path=path, sha256=digit * 64, size_bytes=size_bytes)


def test_a_manifest_counts_its_files_and_names_every_blob() -> None:
    manifest = Manifest(
        format=Format.ONNX,
        files=(entry("model.onnx", "1", 10), entry("model.data", "2", 20)),
        golden=GoldenSamples(file=entry("samples.npz", "3", 5), count=1),
        lineage=Lineage(source="m:1", log=entry("log.txt", "4", 7)),
    )
    assert manifest.size_bytes == 30  # the artifact alone
    assert [blob.sha256[0] for blob in manifest.blobs] == ["1", "2", "3", "4"]
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


@pytest.mark.parametrize(
    ("paths", "message"),
    [(("a", "a"), "more than once"), (("a", "a/b"), "both a file and a folder"), ((), "at least 1")],
)
def test_files_that_cannot_lie_side_by_side_are_refused(paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Manifest(format=Format.ONNX, files=tuple(entry(path) for path in paths))


def test_manifest_paths_cannot_leave_the_folder() -> None:
    document = Manifest(format=Format.ONNX, files=(entry("model.onnx"),)).model_dump_json()
    with pytest.raises(InvalidNameError):
        Manifest.model_validate_json(document.replace("model.onnx", "../model.onnx"))


@pytest.mark.parametrize("digest", ["", "0" * 63, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"])
def test_digests_are_digests(digest: str) -> None:
    with pytest.raises(ValidationError):
        FileEntry(path="a", sha256=digest, size_bytes=0)


def test_fields_of_a_newer_release_are_ignored() -> None:
    document = Manifest(format=Format.ONNX, files=(entry("model.onnx"),)).model_dump(mode="json")
    assert Manifest.model_validate({**document, "new_field": 1}).files[0].path == "model.onnx"


def test_older_manifest_is_servable_if_its_format_is() -> None:
    document = Manifest(format=Format.ONNX, files=(entry("model.onnx"),)).model_dump(mode="json")
    del document["unservable"]
    assert Manifest.model_validate(document).servable
    assert not Manifest.model_validate({**document, "format": "sklearn"}).servable
    assert not Manifest.model_validate({**document, "unservable": "it gives a sequence"}).servable


def test_only_what_triton_runs_has_a_backend() -> None:
    assert {form: form.backend for form in Format if form.backend} == {
        Format.ONNX: "onnxruntime",
        Format.TORCHSCRIPT: "pytorch",
    }
    assert all((form.backend is None) == (form.file_name is None) for form in Format)


def test_a_batched_signature_has_a_batch_dimension_everywhere() -> None:
    x = TensorSpec(name="x", dtype=DataType.FP32, shape=(-1, 2))
    fixed = TensorSpec(name="y", dtype=DataType.FP32, shape=(1, 2))
    scalar = TensorSpec(name="z", dtype=DataType.FP32, shape=())
    assert Signature(inputs=(x,), outputs=(fixed,)).batched is False
    for output in (fixed, scalar):
        with pytest.raises(ValidationError, match="first dimension"):
            Signature(inputs=(x,), outputs=(output,), batched=True)
    with pytest.raises(ValidationError, match="'x' appears more than once"):
        Signature(inputs=(x, x), outputs=(fixed,))


def test_shapes_accept_what_fits() -> None:
    spec = TensorSpec(name="x", dtype=DataType.FP32, shape=(-1, 2))
    assert spec.accepts((0, 2))
    assert spec.accepts((7, 2))
    assert not spec.accepts((7, 3))
    assert not spec.accepts((2,))
    with pytest.raises(ValidationError):
        TensorSpec(name="x", dtype=DataType.FP32, shape=(-2,))
