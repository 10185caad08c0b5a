"""Units: readable sizes and counts."""


def size_text(size: int) -> str:
    """Return a readable size: binary units, three digits."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def count_text(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 chain``, ``2 chains``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
