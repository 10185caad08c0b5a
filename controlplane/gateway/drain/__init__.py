"""Draining across gateways: each of them stops routing to a model before it is unloaded."""
