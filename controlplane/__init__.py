"""A control plane for NVIDIA Triton."""
