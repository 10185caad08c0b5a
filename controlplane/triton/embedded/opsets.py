"""ONNX opsets that the embedded server's backend supports, as ONNX Runtime reports them in a separate process."""

import re
import subprocess
import sys
from functools import cache

# An ONNX file (onnx.proto: ir_version 8, opset_import version 9999, a graph named "g") that no release can open. The
# error message names the newest supported opset; there is no API for this.
_FROM_THE_FUTURE = b"\x08\x08\x42\x03\x10\x8f\x4e\x3a\x03\x12\x01g"
_PROGRAM = f"""
import onnxruntime
onnxruntime.set_default_logger_severity(4)
try:
    onnxruntime.InferenceSession({_FROM_THE_FUTURE!r}, providers=["CPUExecutionProvider"])
except Exception as error:
    print(error)
"""
_SUPPORTED = re.compile(r"domain ai\.onnx is till opset (\d+)")
_SECONDS = 60.0


@cache
def newest_opset() -> int | None:
    """Return the newest supported opset of the standard operators; None if it is unknown. Blocks, once."""
    try:
        told = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _SUPPORTED.search(told.stdout)
    return int(found[1]) if found else None
