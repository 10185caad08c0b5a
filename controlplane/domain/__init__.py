"""Frozen types and pure rules. Imports nothing of the project except `errors`."""
