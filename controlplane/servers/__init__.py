"""A Triton server as the control plane sees it: its ports, snapshots, readings and health."""
