"""Large JSON bodies do not stop the event loop, and read as small ones do."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from controlplane.errors import InvalidInputError, TooManyWaitingError
from controlplane.services import large_json as module
from controlplane.services.large_json import LargeJson


@pytest.fixture
async def large() -> AsyncIterator[LargeJson]:
    made = LargeJson()
    yield made
    made.close()


def body(*data: Any, **more: Any) -> bytes:
    inputs = [{"name": f"x{n}", "shape": [1], "data": one} for n, one in enumerate(data)]
    return json.dumps({"inputs": inputs, **more}).encode()


async def test_event_loop_runs_while_a_large_body_is_parsed(large: LargeJson) -> None:
    text = b'{"inputs": [{"name": "x", "data": [' + b"0.1," * 4_000_000 + b"0.1]}]}"
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    skeleton, data = await large.parse(text)
    rendered = await large.render({"id": ""}, [("y", data[0])])
    ticking.cancel()
    assert json.loads(skeleton) == {"inputs": [{"name": "x", "data": None}]}
    assert data[0].shape == (4_000_001,)
    assert len(rendered) > 4_000_000
    # To read this body keeps the interpreter busy for hundreds of milliseconds; in this process that is no tick.
    assert ticks >= 20


async def test_numbers_become_arrays_and_other_values_are_unchanged(large: LargeJson) -> None:
    strings, mixed, ragged = ["a", "b"], [1, "NaN"], [[1], [1, 2]]
    skeleton, data = await large.parse(body([1, 2], [[0.5]], strings, mixed, ragged, None, id="7", parameters={"a": 1}))
    assert "parameters" not in json.loads(skeleton)
    assert json.loads(skeleton)["id"] == "7"
    assert [one["data"] for one in json.loads(skeleton)["inputs"]] == [None] * 6
    np.testing.assert_array_equal(data[0], [1, 2])
    np.testing.assert_array_equal(data[1], [[0.5]])
    assert data[2:] == [strings, mixed, ragged, None]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"inputs": [', "it is not valid JSON: "),
        (b'{"inputs": [{"data": [NaN]}]}', "NaN is not valid JSON"),
        (b"[1, 2]", "the list of inputs is missing"),
        (b'{"inputs": [{"name": "\\ud800"}]}', "an unpaired surrogate"),
        (b'{"inputs": "\xff"}', "it is not valid UTF-8"),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
async def test_invalid_request_is_rejected(large: LargeJson, text: bytes, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        await large.parse(text)


async def test_number_of_concurrent_large_bodies_is_limited(large: LargeJson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 2)
    begun = [asyncio.create_task(large.parse(body([1]))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyWaitingError, match="the limit of 2 large JSON bodies in progress is reached"):
        await large.parse(body([1]))
    for one in begun:
        await one
    await large.parse(body([1]))
