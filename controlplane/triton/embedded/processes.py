"""Which processes belong to a model. Read from /proc: Triton's API does not tell."""

from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children, of all the process's threads."""
    children: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            children.extend(int(child) for child in (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended while we looked
    return children


def model_processes(server: int, repository: Path, model: str, version: int | None) -> list[int]:
    """Process ids of a model's instances among the children of a server.

    The Python backend starts each instance as ``stub <repository>/<model>/<version>/<file> …``.
    """
    folder = repository / model if version is None else repository / model / str(version)
    prefix = f"{folder}/".encode()
    found = []
    for pid in children_of(server):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(arguments) > 1 and arguments[1].startswith(prefix):
            found.append(pid)
    return found
