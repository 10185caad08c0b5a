"""The states of Triton's repository index that the control plane tells apart."""

READY, LOADING, UNLOADING = "READY", "LOADING", "UNLOADING"
