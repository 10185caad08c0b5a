"""The Prometheus metrics of the control plane."""
