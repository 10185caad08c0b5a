"""ONNX Runtime in NVIDIA's Triton images, and the models that each ONNX Runtime loads. Pure.

`RELEASES` is the table "ONNX Runtime Versions" of docs/introduction/compatibility.md in
https://github.com/triton-inference-server/server (commit 0f963c9). It ends with 26.08. 25.08 is left out, because that
image has an untagged commit (1.23.0+1d1712fdaf), which no package contains. A release without an entry is unknown.

`_LIMITS` was measured with the Python package of each ONNX Runtime: models whose IR version, or whose opset of one
domain, increases until the package refuses the file. Every patch release in `RELEASES` was measured and has the limits
of its minor release. For 1.17 to 1.20 the IR version and the opset of ai.onnx agree with
https://onnxruntime.ai/docs/reference/compatibility.html, which states 4 for the opset of ai.onnx.ml in 1.18 to 1.20;
those releases load 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ONNX, ONNX_ML = "ai.onnx", "ai.onnx.ml"


@dataclass(frozen=True, slots=True)
class OnnxLimits:
    """The newest versions that one ONNX Runtime loads.

    Attributes:
        runtime: Its version.
        ir_version: The newest IR version.
        opsets: The newest opset, by domain. Other domains have no limit of this kind: a model fails only if it uses an
            operator that the runtime does not have.
    """

    runtime: str
    ir_version: int
    opsets: Mapping[str, int]


# IR version, opset of ai.onnx, opset of ai.onnx.ml, by minor release.
_LIMITS: Mapping[str, tuple[int, int, int]] = MappingProxyType({
    "1.17": (9, 20, 4),
    "1.18": (10, 21, 5),
    "1.19": (10, 21, 5),
    "1.20": (10, 21, 5),
    "1.21": (10, 22, 5),
    "1.22": (10, 22, 5),
    "1.23": (11, 23, 5),
    "1.24": (13, 25, 5),
    "1.25": (13, 26, 5),
    "1.26": (13, 26, 5),
    "1.27": (13, 26, 5),
    "1.28": (13, 26, 5),
    "1.29": (13, 26, 5),
    "1.30": (13, 26, 5),
    "1.31": (13, 26, 5),
    "1.32": (14, 28, 5),
})  # fmt: skip

RELEASES: Mapping[str, str] = MappingProxyType({
    "24.04": "1.17.3", "24.05": "1.18.0", "24.06": "1.18.0", "24.07": "1.18.1", "24.08": "1.18.1", "24.09": "1.19.2",
    "24.10": "1.19.2", "24.11": "1.19.2", "24.12": "1.20.1",
    "25.01": "1.20.1", "25.02": "1.20.1", "25.03": "1.21.0", "25.04": "1.21.0", "25.05": "1.22.0", "25.06": "1.22.0",
    "25.07": "1.22.0", "25.09": "1.23.0", "25.10": "1.23.1", "25.11": "1.23.2", "25.12": "1.23.2",
    "26.01": "1.23.2", "26.02": "1.24.1", "26.03": "1.24.2", "26.04": "1.24.4", "26.05": "1.24.4", "26.06": "1.24.4",
    "26.07": "1.27.0", "26.08": "1.28.0",
})  # fmt: skip
"""Version of ONNX Runtime, by release of the image ``nvcr.io/nvidia/tritonserver:YY.MM-py3``."""


def limits_of_runtime(version: str) -> OnnxLimits | None:
    """Return the limits of an ONNX Runtime such as 1.23.2; None if its minor release was not measured."""
    found = _LIMITS.get(".".join(version.split(".")[:2]))
    return None if found is None else OnnxLimits(version, found[0], {ONNX: found[1], ONNX_ML: found[2]})


def limits_of_release(release: str) -> OnnxLimits | None:
    """Return the limits of the ONNX Runtime in an image such as 25.08; None if the release has no entry."""
    version = RELEASES.get(release)
    return None if version is None else limits_of_runtime(version)
