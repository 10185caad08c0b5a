"""The use cases that the API calls, one module each."""
