"""The use cases, one module each: what the API calls."""
