"""The steps of commands that take more than one request."""
