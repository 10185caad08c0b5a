"""Errors of model sources, in addition to those of `controlplane.errors`."""

from controlplane.errors import ControlPlaneError


class SourceError(ControlPlaneError):
    """A place that models come from, such as an MLflow server, refused or failed."""


class SourceUnavailableError(SourceError):
    """The place that a model comes from cannot be reached."""
