"""Reads GPUs when told to, on standard input, and prints what it read as one line of JSON."""

import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor

from controlplane.errors import DeviceError
from controlplane.gpu.nvml import NvmlSource


def in_threads(source: NvmlSource) -> set[int]:
    """Read from eight threads at once; return how many devices they saw."""
    with ThreadPoolExecutor(8) as threads:
        return {len(readings) for readings in threads.map(lambda _: source.read(), range(200))}


def main() -> None:
    source = NvmlSource(sys.argv[1:])
    for line in sys.stdin:
        match line.split():
            case ["read"]:
                try:
                    print(json.dumps([dataclasses.asdict(reading) for reading in source.read()]))
                except DeviceError as error:
                    print(json.dumps(error.message))
            case ["close"]:
                source.close()
                print("null")
            case ["threads"]:
                print(json.dumps(sorted(in_threads(source))))
            case ["another"]:  # a second source in the same process, opened and closed
                other = NvmlSource()
                count = len(other.read())
                other.close()
                print(json.dumps(count))
        sys.stdout.flush()
    source.close()


if __name__ == "__main__":
    main()
