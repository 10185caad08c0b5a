"""Which GPUs a load says, and what is read back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.gpu.base import DeviceKind, DeviceReading
from controlplane.memory.gpu_refusals import unusable_gpus
from controlplane.triton.config_json import json_to_message, message_to_json
from controlplane.triton.instance_groups import (
    GPUS_PARAMETER,
    asked_gpus,
    may_use_gpu,
    named_gpus,
    on_gpus,
    present_gpus,
    wants_gpu,
)


def config(*groups: dict[str, Any]) -> dict[str, Any]:
    return {"name": "m", "instance_group": list(groups), "parameters": {"other": {"string_value": "x"}}}


def kinds(one: dict[str, Any]) -> list[tuple[str, list[int]]]:
    return [(group.get("kind", "KIND_AUTO"), group.get("gpus", [])) for group in one["instance_group"]]


@pytest.mark.parametrize(
    ("group", "place", "made"),
    [
        ({"count": 2}, (1,), ("KIND_GPU", [1])),
        ({"kind": "KIND_AUTO"}, (0, 3), ("KIND_GPU", [0, 3])),
        ({"kind": "KIND_GPU"}, (2,), ("KIND_GPU", [2])),
        ({"kind": "KIND_AUTO"}, (), ("KIND_CPU", [])),
        ({"kind": "KIND_AUTO", "gpus": [1]}, (1,), ("KIND_GPU", [1])),
        # The user's own word, and what leaves the choice to the backend.
        ({"kind": "KIND_GPU", "gpus": [0]}, (1,), ("KIND_GPU", [0])),
        ({"kind": "KIND_CPU"}, (1,), ("KIND_CPU", [])),
        ({"kind": "KIND_MODEL"}, (1,), ("KIND_MODEL", [])),
        ({"kind": "KIND_AUTO"}, None, ("KIND_AUTO", [])),
    ],
)
def test_instance_group_is_moved_to_assigned_gpus(
    group: dict[str, Any], place: tuple[int, ...] | None, made: tuple[str, list[int]]
) -> None:
    before = config(group)
    after = on_gpus(before, place)
    assert kinds(after) == [made]
    assert after["instance_group"][0].get("count") == group.get("count")
    assert after["parameters"]["other"] == {"string_value": "x"}
    assert before == config(group), "the version is prepared once for all servers"


groups_ = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"]),
        "gpus": st.lists(st.integers(0, 7), max_size=2, unique=True),
        "count": st.integers(1, 4),
    },
)
places = st.none() | st.lists(st.integers(0, 7), max_size=4, unique=True).map(lambda gpus: tuple(sorted(gpus)))


@given(st.lists(groups_, max_size=3), places)
def test_requested_gpus_are_read_back(groups: list[dict[str, Any]], place: tuple[int, ...] | None) -> None:
    before = config(*groups)
    asked, sent = asked_gpus(before, place), on_gpus(before, place)
    assert json_to_message(sent) is not None, "Triton knows every field"
    back = message_to_json(json_to_message(sent))
    if asked is not None:
        assert present_gpus(back) == asked
        assert on_gpus(back, place)["instance_group"] == back["instance_group"], "a second time changes nothing"
    else:
        assert GPUS_PARAMETER not in back["parameters"]
    if place:
        assert set(named_gpus(sent)) <= set(named_gpus(before)) | set(place)


def test_gpus_chosen_by_triton_are_read() -> None:
    assert present_gpus(config({"kind": "KIND_GPU", "gpus": [0, 1]})) == (0, 1)
    assert present_gpus(config({"kind": "KIND_CPU"})) == ()
    assert present_gpus(config({"kind": "KIND_MODEL"})) is None
    assert present_gpus({"parameters": {GPUS_PARAMETER: {"string_value": "one"}}}) is None


def test_configuration_shows_whether_it_may_use_or_needs_gpu() -> None:
    assert may_use_gpu({})
    assert not may_use_gpu(config({"kind": "KIND_CPU"}))
    assert wants_gpu(config({"kind": "KIND_CPU"}, {"kind": "KIND_GPU"}))
    assert wants_gpu(config({"gpus": [1]}))
    assert not wants_gpu(config({}))


def test_refusal_shows_which_gpus_triton_does_not_use() -> None:
    gpus = [DeviceReading(f"gpu:{number}", DeviceKind.GPU, 1, 0, device_id=number) for number in range(3)]
    least = "GPUs with at least the minimum required CUDA compute compatibility of 6.000000 are: "
    words = "version 1 is at UNAVAILABLE state: Invalid argument: instance group m_0 of model m "
    assert unusable_gpus(f"{words}has kind KIND_GPU but no GPUs are available;", gpus) == {"gpu:0", "gpu:1", "gpu:2"}
    some = f"{words}specifies invalid or unsupported gpu id 0. {least}1 2 ;"
    assert unusable_gpus(some, gpus) == {"gpu:0"}
    none = f"{words}specifies invalid or unsupported gpu id 0. {least};"
    assert unusable_gpus(none, gpus) == {"gpu:0", "gpu:1", "gpu:2"}
    assert unusable_gpus(f"{words}failed to allocate memory", gpus) == frozenset()
