"""A machine with GPUs: a compiled stand-in for NVIDIA's library that answers with the values in a file."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "gpu" / "nvml_stub.c"
GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """GPUs as a file says, for processes that are started with its `environment`."""

    library: Path
    file: Path

    def has(self, **lines: object) -> None:
        """Say what the machine has from now on; `gpu0__total=1` is the line ``gpu0.total 1``."""
        temporary = self.file.with_suffix(".new")
        temporary.write_text("".join(f"{key.replace('__', '.')} {value}\n" for key, value in lines.items()))
        temporary.replace(self.file)

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs in its environment to have these GPUs."""
        return {"LD_LIBRARY_PATH": str(self.library.parent), "NVML_STUB": str(self.file)}

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables}


def compiled(folder: Path, *flags: str) -> Path:
    """Compile the stand-in under the name of the driver's library."""
    library = folder / "libnvidia-ml.so.1"
    strict = ("-Wall", "-Wextra", "-Werror")
    subprocess.run(["cc", *strict, "-shared", "-fPIC", *flags, "-o", library, SOURCE], check=True)
    return library


def gpu(number: int, **more: object) -> dict[str, object]:
    """Return the values of a GPU that supports everything."""
    values: dict[str, object] = {
        "uuid": f"GPU-{number}aaa",
        "name": "NVIDIA H200",
        "total": 140 * GIB,
        "used": 3 * GIB,
        "reserved": GIB,
        "utilisation": 37,
        "temperature": 41,
        "power": 118_500,
        "power_limit": 700_000,
        "ecc_corrected": 2,
        "ecc_uncorrected": 0,
        "throttle": "0x1",
        "mig": 0,
        "compute": "100:1000,200:2000",
        "graphics": "",
        "mps": "",
        **more,
    }
    return {f"gpu{number}__{key}": value for key, value in values.items()}
