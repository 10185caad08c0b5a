"""An embedded Triton server: the binary of the `nvidia-pytriton` wheel, started, supervised and stopped."""

from controlplane.triton.embedded.server import EmbeddedTriton

__all__ = ["EmbeddedTriton"]
