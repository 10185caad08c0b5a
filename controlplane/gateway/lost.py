"""Answers of a server that does not know a routed model any more: it restarted, or another client unloaded the model.

The model is known here, so clients get "unavailable, try again" instead of Triton's "unknown model".
"""

from controlplane.errors import ModelUnavailableError

LOST = "the Triton server does not have the model now: it is restarting, or the model is being reloaded; try again"
UNKNOWN_MODEL = "Request for unknown model"
"""How Triton's message begins if it does not know a model or a version; other errors have the same status."""
NAMED_VERSION = "' version "
"""Part of that message if a version, not the model, is unknown."""
RETRY_AFTER_SECONDS = 1
"""Wait that rejected clients are asked for."""


def is_lost(message: str) -> bool:
    """Return whether an error message of Triton says that it does not know the model under any version."""
    return UNKNOWN_MODEL in message and NAMED_VERSION not in message


def lost_error(model: str) -> ModelUnavailableError:
    """Return the error for a client."""
    return ModelUnavailableError(LOST, model=model, retry_after_seconds=RETRY_AFTER_SECONDS)
