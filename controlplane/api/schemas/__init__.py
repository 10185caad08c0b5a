"""Requests and responses of the API, beyond the domain's own types."""
