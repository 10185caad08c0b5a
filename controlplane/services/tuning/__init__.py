"""Tuning of a deployment."""
