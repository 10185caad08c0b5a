"""Splits a model's requests between two versions and compares the answers."""
