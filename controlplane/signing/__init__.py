"""Signatures of versions: the only place that imports `model_signing`."""
