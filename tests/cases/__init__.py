"""Regression tests and their inputs, each for a fault that was fixed."""
