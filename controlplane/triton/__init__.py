"""Communication with Triton servers, and their configuration and supervision."""
