"""The control loop, which brings the observed state of the servers to the desired state."""
