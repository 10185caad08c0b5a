import posixpath
import re
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.names import (
    CANDIDATE_SUFFIX,
    Reference,
    candidate_name,
    validate_alias,
    validate_file_path,
    validate_model_name,
)
from controlplane.errors import InvalidInputError, InvalidNameError, InvalidReferenceError

# Text that is mostly what breaks things, so that much of it is near the rules' edge.
nasty = st.text(st.sampled_from("ab1._-~/\\:@% \x00\n\x7f\udc80é\u202e*?"), max_size=12) | st.text(max_size=200)
model_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", fullmatch=True)
alias_names = st.from_regex(r"[a-z][a-z0-9_-]{0,63}", fullmatch=True).filter(lambda alias: alias != "latest")


def accepted(check, text):
    try:
        return check(text)
    except InvalidInputError:
        return None


@given(nasty)
def test_valid_model_name_stays_in_its_folder_and_is_unambiguous(text: str) -> None:
    name = accepted(validate_model_name, text)
    if name is None:
        return
    assert name == text
    assert len(name) <= 128
    assert posixpath.normpath(f"models/{name}/revisions") == f"models/{name}/revisions"
    assert PurePosixPath(name).parts == (name,)
    assert not name.startswith((".", "-"))
    assert re.fullmatch(r"[\x21-\x7e]+", name)
    assert not set(name) & set(":@/\\~%?#&*")  # nor reference, path, URL, pattern or the control plane's own names
    assert str(Reference.parse(name)) == name
    assert accepted(validate_model_name, candidate_name(name)) is None


@given(nasty)
def test_an_accepted_file_path_stays_in_its_folder(text: str) -> None:
    path = accepted(validate_file_path, text)
    if path is None:
        return
    root = Path("/artifact")
    assert posixpath.normpath(posixpath.join(root, path)) == f"{root}/{path}"
    assert (root / path).is_relative_to(root)
    assert (root / path) != root
    assert all(not part.startswith(".") for part in path.split("/"))
    assert "\\" not in path
    path.encode()  # every store's keys are UTF-8


@given(nasty)
def test_an_accepted_alias_is_one_word(text: str) -> None:
    alias = accepted(validate_alias, text)
    if alias is not None:
        assert re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", alias)
        assert alias != "latest"


@given(model_names, st.none() | st.integers(1, 999_999_999), st.none() | alias_names)
def test_references_are_read_as_they_are_written(model: str, version: int | None, alias: str | None) -> None:
    reference = Reference(model, version=version, alias=None if version else alias)
    assert Reference.parse(str(reference)) == reference


@given(nasty)
def test_every_text_is_a_reference_or_is_refused(text: str) -> None:
    reference = accepted(Reference.parse, text)
    if reference is not None:
        assert str(reference) in {text, text.removesuffix("@latest")}


@pytest.mark.parametrize("name", ["resnet50", "a", "A.b-c_d", "0", "x" * 128, "model..x", "con"])
def test_valid_names_are_accepted(name: str) -> None:
    assert validate_model_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-rf",
        "_x",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "a:1",
        "a@b",
        f"a{CANDIDATE_SUFFIX}",
        "ä",
        "x" * 129,
        "a\x00",
        "٣",
    ],
)
def test_invalid_names_are_rejected(name: str) -> None:
    with pytest.raises(InvalidNameError):
        validate_model_name(name)


@pytest.mark.parametrize("path", ["model.onnx", "1/model.onnx", "data/weights.bin", "Größe.bin", "a b.bin", "x" * 255])
def test_valid_file_paths_are_accepted(path: str) -> None:
    assert validate_file_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a/..",
        "./a",
        "a//b",
        "a/",
        ".git/x",
        "a/.x",
        "a\\b",
        "a\nb",
        "a\x7f",
        "x" * 256,
        "/".join(["x" * 200] * 6),
        "\udcff",
        "é" * 128,
    ],
)
def test_invalid_file_paths_are_rejected(path: str) -> None:
    with pytest.raises(InvalidNameError):
        validate_file_path(path)


@pytest.mark.parametrize("text", ["m:", "m:0", "m:01", "m:-1", "m:x", "m:1:2", "m:٣", "m:1000000000", "m@a:1", "m:1@a"])
def test_invalid_references_are_rejected(text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        Reference.parse(text)


@pytest.mark.parametrize("text", ["", "@a", ":1", "m@", "m@A", "m@a@b", "../m:1"])
def test_references_with_invalid_names_are_rejected(text: str) -> None:
    with pytest.raises(InvalidNameError):
        Reference.parse(text)


def test_latest_equals_the_name_without_a_version() -> None:
    assert Reference.parse("m@latest") == Reference("m")
    with pytest.raises(InvalidNameError, match="model name without a version"):
        validate_alias("latest")
