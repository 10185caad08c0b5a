"""States in Triton's repository index that the control plane distinguishes."""

READY, LOADING, UNLOADING = "READY", "LOADING", "UNLOADING"
