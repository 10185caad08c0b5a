"""Readings of devices and their memory: NVML, Triton's own metrics, the host."""
