"""Names in raw gRPC messages: our reader against protobuf's own. Pure."""

from collections import Counter
from random import Random

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from controlplane.errors import InvalidInputError
from controlplane.gateway.grpc_wire import FIELDS_MAX, Names, parameter, read_names, rename, stream_error
from tests.support import hostile
from tests.support.hostile import NAME, VERSION, tensors, text, varint

NAMES = ("team-net", "other", "team-lazy")
_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
Request = service_pb2.ModelInferRequest


def refused(raw: bytes) -> bool:
    try:
        read_names(raw)
    except InvalidInputError:
        return True
    return False


def test_names_are_read_as_protobuf_reads_them() -> None:
    """Also of what goes on to Triton, in which the names come first and once."""
    found: Counter[str] = Counter()
    for seed in range(8_000):
        raw = hostile.request(Random(seed), NAMES)
        try:
            names = read_names(raw)
        except InvalidInputError:
            found["refused"] += 1
            continue
        sent = rename(raw, names.name, names.version)
        try:
            reference = Request.FromString(raw)
        except DecodeError:
            found["no request"] += 1  # its tensors are none: nothing runs
            with pytest.raises(DecodeError):
                Request.FromString(sent)
            continue
        found["read"] += 1
        assert names == Names(reference.model_name, reference.model_version, reference.id), f"seed {seed}: {raw!r}"
        assert Request.FromString(sent) == reference, f"seed {seed}"
        assert sent.startswith(text(NAME, names.name.encode())), f"seed {seed}"
        other = Request.FromString(rename(raw, "another", "7"))
        reference.model_name, reference.model_version = "another", "7"
        assert other == reference, f"seed {seed}"
    assert found["read"] > 2_000, found
    assert found["refused"] > 2_000, found


@given(
    st.sampled_from(NAMES),
    st.sampled_from(["", "1", "42"]),
    st.lists(st.sampled_from([text(8, b"x"), varint(15 << 3) + varint(1 << 63), text(3, b"7")]), unique=True),
    st.randoms(use_true_random=False),
)
def test_field_order_and_unknown_fields_are_not_ambiguous(
    name: str, version: str, more: list[bytes], random: Random
) -> None:
    fields = [text(NAME, name.encode()), *([text(VERSION, version.encode())] if version else []), *more, tensors()]
    random.shuffle(fields)
    names = read_names(b"".join(fields))
    assert (names.name, names.version) == (name, version)


FIRST = text(NAME, b"team-net")
DOUBTFUL = {
    "two names": FIRST + tensors() + text(NAME, b"other"),
    "the same name twice": FIRST + FIRST + tensors(),
    "two versions": FIRST + text(VERSION, b"1") + tensors() + text(VERSION, b"2"),
    "a name that is a number": FIRST + varint(NAME << 3) + varint(7),
    "a name that is a group": FIRST + varint(NAME << 3 | 3) + varint(NAME << 3 | 4),
    "a tag with a byte too many": text(NAME, b"team-net", tag_extra=1),
    "a length with a byte too many": text(NAME, b"team-net", length_extra=1),
    "a group": FIRST + varint(9 << 3 | 3) + text(NAME, b"other") + varint(9 << 3 | 4),
    "the field 0": FIRST + text(0, b"other"),
    "a field beyond the largest number": FIRST + varint((1 << 29 | NAME) << 3 | 2) + varint(5) + b"other",
    "a length beyond the end": FIRST + varint(7 << 3 | 2) + varint(1 << 20),
    "a length of 64 bits": FIRST + varint(7 << 3 | 2) + varint((1 << 64) - 1),
    "a number that does not end": FIRST + b"\x38" + b"\xff" * 11,
    "a name that is not UTF-8": text(NAME, b"team-net\xff"),
    "a name that ends early for some": text(NAME, b"team-net\0other"),
    "too many fields": FIRST + text(8, b"") * FIELDS_MAX,
}


@pytest.mark.parametrize("what", DOUBTFUL)
def test_ambiguous_message_is_refused(what: str) -> None:
    with pytest.raises(InvalidInputError, match="the request is ambiguous about its model: "):
        read_names(DOUBTFUL[what])


@given(_text, st.from_regex(r"[0-9]{0,5}", fullmatch=True), st.text(max_size=20), st.binary(max_size=300))
def test_names_are_read_and_changed_in_raw_messages(name: str, version: str, number: str, raw: bytes) -> None:
    request = Request(model_name=name, model_version=version, id=number)
    request.raw_input_contents.append(raw)
    written = request.SerializeToString()
    assert read_names(written) == Names(name, version, number)
    assert rename(written, name, version) is written, "a large message is not copied for nothing"
    changed = Request.FromString(rename(written, "net", "7"))
    request.model_name, request.model_version = "net", "7"
    assert changed == request


@given(st.binary(max_size=60))
def test_random_bytes_cause_no_unexpected_error(raw: bytes) -> None:
    if not refused(raw):
        assert isinstance(read_names(raw).name, str)


def test_parameter_is_read_as_protobuf_reads_it() -> None:
    def entry(version: bytes) -> bytes:
        return text(4, text(1, b"x-model-version") + text(2, version))

    number = varint(2 << 3) + varint(7)
    assert parameter(FIRST + entry(text(3, b"2")) + tensors(), "x-model-version") == "2"
    assert parameter(FIRST + tensors() + entry(number), "x-model-version") == "7"
    assert parameter(FIRST + entry(text(3, b"2")) + tensors() + entry(text(3, b"1")), "x-model-version") == "1"
    assert parameter(FIRST + entry(text(3, b"2") + number) + tensors(), "x-model-version") == "7"
    assert parameter(FIRST + tensors(), "x-model-version") == ""
    with pytest.raises(InvalidInputError, match="parameters"):
        parameter(FIRST + text(4, text(1, b"x-model-version") + text(2, b"\xff")), "x-model-version")


def test_triton_clients_can_read_stream_error() -> None:
    response = service_pb2.ModelStreamInferResponse.FromString(stream_error("no", "7"))
    assert (response.error_message, response.infer_response.id) == ("no", "7")
