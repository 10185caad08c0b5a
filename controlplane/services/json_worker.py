"""A process that parses one large JSON inference request, or serialises one large response.

Python's JSON parser holds the interpreter's lock while it runs, so a thread would block the event loop all the same.
`python -m controlplane.services.json_worker` reads a pickled job from its standard input and writes the pickled result
to its standard output; both are memory of the process that started it.
"""

import json
import pickle
import resource
import sys
from typing import Any, NoReturn

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.services.tensors import from_array

_BASE_BYTES = 2 * 1024**3
_BYTES_PER_BYTE = 48
"""Memory per byte of JSON: a number of two bytes becomes an element of a list and, at worst, an object."""
_KNOWN = frozenset({"id", "inputs", "outputs"})
_OF_INPUTS = frozenset({"name", "datatype", "shape", "data"})
_SKELETON_MAX_BYTES = 1024 * 1024

Parsed = tuple[bytes, list[Any]]
"""The request without its data, as JSON, and the data of each of its inputs: an array if it consists of numbers."""


def parse(body: bytes) -> Parsed:
    """Parse a request.

    Raises:
        ValueError: It is not JSON, or not an inference request.
    """
    try:
        document = json.loads(body, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not valid UTF-8 at byte {error.start}") from error
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise ValueError("it is not an inference request: the list of inputs is missing")  # noqa: TRY004 - of what was sent
    skeleton = {key: value for key, value in document.items() if key in _KNOWN}
    data = [_array(one.get("data")) if isinstance(one, dict) else None for one in document["inputs"]]
    skeleton["inputs"] = [
        {key: None if key == "data" else value for key, value in one.items() if key in _OF_INPUTS}
        if isinstance(one, dict)
        else one
        for one in document["inputs"]
    ]
    try:
        text = json.dumps(skeleton, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a string contains an unpaired surrogate, which is not valid Unicode") from error
    if len(text) > _SKELETON_MAX_BYTES:
        raise ValueError("names, shapes and other fields except the data exceed 1 MiB")
    return text, data


def render(document: dict[str, Any], tensors: list[tuple[str, Array]]) -> bytes:
    """Serialise a response whose outputs are given as arrays."""
    outputs = []
    for name, array in tensors:
        datatype, data = from_array(array)
        outputs.append({"name": name, "datatype": datatype, "shape": list(array.shape), "data": data})
    return json.dumps({**document, "outputs": outputs}, separators=(",", ":"), ensure_ascii=False).encode()


def _array(data: Any) -> Any:
    """Return numbers as an array; return other data unchanged, for the caller to reject or read."""
    try:
        array = np.asarray(data)
    except (ValueError, OverflowError):
        return data
    return array if array.dtype.kind in "biuf" else data


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not valid JSON; send it as a string")


def main() -> None:
    """Run the job from standard input."""
    kind, *job = pickle.load(sys.stdin.buffer)
    size = len(job[0]) if kind == "parse" else sum(array.nbytes for _, array in job[1])
    limit = _BASE_BYTES + _BYTES_PER_BYTE * size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    result: tuple[str, Any]
    try:
        result = ("done", parse(*job) if kind == "parse" else render(*job))
    except ValueError as error:
        result = ("refused", str(error))
    except RecursionError:
        result = ("refused", "it is nested too deeply")
    except MemoryError:
        result = ("refused", "it needs too much memory")
    pickle.dump(result, sys.stdout.buffer, protocol=5)


if __name__ == "__main__":
    main()
