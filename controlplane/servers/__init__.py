"""A Triton server as the control plane sees it: its clients, snapshots, readings and health."""
