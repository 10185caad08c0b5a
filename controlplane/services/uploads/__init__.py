"""Uploads of artifacts."""
