import contextlib
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from controlplane.domain import samples as samples_module
from controlplane.domain.arrays import Array
from controlplane.domain.samples import Sample, check_samples, decode_samples, encode_samples
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.errors import InvalidInputError

shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
numeric = st.sampled_from([dtype for dtype in DataType if dtype not in {DataType.BYTES, DataType.BF16}]).flatmap(
    lambda dtype: hnp.arrays(dtype.numpy, shapes)
)


@st.composite
def strings(draw: st.DrawFn) -> Array:
    shape = draw(shapes)
    array = np.empty(int(np.prod(shape)), dtype=object)
    array[:] = draw(st.lists(st.binary(max_size=9), min_size=array.size, max_size=array.size))
    return array.reshape(shape)


tensors = st.dictionaries(st.text(min_size=1, max_size=5), numeric | strings(), max_size=3)
many = st.lists(st.builds(Sample, tensors, tensors), max_size=3).map(tuple)


def same(left: Array, right: Array) -> bool:
    if DataType.of(left) is DataType.BYTES:
        return left.shape == right.shape and left.reshape(-1).tolist() == right.reshape(-1).tolist()
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@given(many)
def test_samples_are_read_back_unchanged(given_samples: tuple[Sample, ...]) -> None:
    read = decode_samples(encode_samples(given_samples))
    assert len(read) == len(given_samples)
    for left, right in zip(given_samples, read, strict=True):
        for want, have in ((left.inputs, right.inputs), (left.outputs, right.outputs)):
            assert list(want) == list(have)  # the order of inputs is the model's
            assert all(same(want[name], have[name]) for name in want)


@given(many)
def test_the_same_samples_are_the_same_bytes(given_samples: tuple[Sample, ...]) -> None:
    data = encode_samples(given_samples)
    assert encode_samples(given_samples) == data
    assert encode_samples(decode_samples(data)) == data


def test_text_is_kept_as_its_bytes() -> None:
    (read,) = decode_samples(encode_samples((Sample({"x": np.array([["ä", b"\x00"]], dtype=object)}, {}),)))
    assert read.inputs["x"].tolist() == [["ä".encode(), b"\x00"]]
    (read,) = decode_samples(encode_samples((Sample({"x": np.array(["ab", "c"])}, {}),)))
    assert read.inputs["x"].tolist() == [b"ab", b"c"]


def test_arrays_in_any_memory_order_are_kept() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    (read,) = decode_samples(encode_samples((Sample({"x": array}, {}),)))
    assert np.array_equal(read.inputs["x"], array)


@given(st.binary(max_size=200))
def test_other_documents_are_rejected(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        decode_samples(data)


@given(st.data())
def test_damaged_archives_are_refused_or_read(data: st.DataObject) -> None:
    whole = encode_samples((Sample({"x": np.ones(3, np.float32), "s": np.array([b"ab"], object)}, {}),))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(InvalidInputError):
        decode_samples(whole[:cut])
    damaged = bytearray(whole)
    damaged[cut] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(InvalidInputError):
        decode_samples(bytes(damaged))


def test_pickles_are_never_read() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, index=np.array([print], dtype=object))
    with pytest.raises(InvalidInputError):
        decode_samples(buffer.getvalue())


@pytest.mark.parametrize(
    "index",
    [
        {},
        [1],
        [{}],
        [{"inputs": {}, "outputs": []}],
        [{"inputs": {"x": {}}, "outputs": {}}],
        "x",
        [{"inputs": {"x": {"key": "none", "shape": [1], "bytes": False}}, "outputs": {}}],
        [{"inputs": {"x": {"key": "a", "shape": [7], "bytes": False}}, "outputs": {}}],
        [{"inputs": {"x": {"key": "a", "shape": ["y"], "bytes": True}}, "outputs": {}}],
        [{"inputs": {"x": {"key": "a", "shape": 3, "bytes": True}}, "outputs": {}}],
    ],
)
def test_an_index_that_makes_no_sense_is_refused(index: object) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, index=np.frombuffer(json.dumps(index).encode(), np.uint8), a=np.ones(3, np.uint8))
    if index == {}:
        assert decode_samples(buffer.getvalue()) == ()
        return
    with pytest.raises(InvalidInputError):
        decode_samples(buffer.getvalue())


def test_archive_that_unpacks_to_too_much_is_rejected_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "MAX_SAMPLES_BYTES", 1 << 20)
    small = encode_samples((Sample({"x": np.zeros(100, np.uint8)}, {}),))
    assert len(decode_samples(small)) == 1
    bomb = encode_samples((Sample({"x": np.zeros(1 << 20, np.uint8)}, {}),))
    assert len(bomb) < 10_000
    with pytest.raises(InvalidInputError, match="unpack to more than 1 MiB"):
        decode_samples(bomb)


def test_archive_with_a_false_size_is_rejected() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(
            "index.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999,), }"
        )
    with pytest.raises(InvalidInputError):
        decode_samples(buffer.getvalue())


# Against a signature

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype=DataType.FP32, shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", dtype=DataType.BF16, shape=(-1,)),),
    batched=True,
)
X, Y = np.zeros((3, 2), np.float32), np.zeros(3, np.float32)


def test_samples_that_match_the_signature_are_accepted() -> None:
    check_samples((Sample({"x": X}, {"y": Y}),), SIGNATURE)  # BF16 travels as float32
    check_samples((Sample({"x": X}, {}),), SIGNATURE, outputs=False)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample({"z": X}, {"y": Y}), r"inputs \['z'\], but the signature has \['x'\]"),
        (Sample({"x": X}, {}), r"outputs \[\], but the signature has \['y'\]"),
        (Sample({"x": X.astype(np.float64)}, {"y": Y}), r"input 'x' is FP64\[3, 2\]"),
        (Sample({"x": X[:, :1]}, {"y": Y}), r"x FP32\[\?,2\]"),
        (Sample({"x": X[0]}, {"y": Y}), r"sample 0"),
        (Sample({"x": X}, {"y": Y.astype(np.float16)}), r"output 'y' is FP16"),
    ],
)
def test_samples_that_do_not_match_the_signature_are_rejected(sample: Sample, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_samples((sample,), SIGNATURE)
