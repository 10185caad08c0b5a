"""The processes of a model's versions: two readings that are equal show that nothing was loaded in between."""

from controlplane.triton.embedded.server import EmbeddedTriton


def processes_of(server: EmbeddedTriton, model: str, version: int) -> set[tuple[int, float]]:
    """Return process id and start time (seconds since the machine started) of each instance of a version."""
    instance = server.instances().get((model, version))
    return set(zip(instance.pids, instance.started, strict=True)) if instance is not None else set()
