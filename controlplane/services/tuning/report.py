"""Reports of a tuning, while it runs and when it has ended. Pure."""

from collections.abc import Sequence
from typing import Any

from controlplane.domain.tuning import Objective, Point, Trial, TrialState, rank


def details_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the measurements so far, for an operation's progress."""
    return {"trials": [trial.model_dump(mode="json") for trial in trials]}


def best_of(trial: Trial, objective: Objective) -> dict[str, Any] | None:
    """Return the measurement that decides about a trial; None if it has none."""
    if not trial.measurements:
        return None
    best = min(trial.measurements, key=lambda one: (objective.shortfall(one), -objective.value(one)))
    return best.model_dump(mode="json")


def verdict(objective: Objective, trials: Sequence[Trial], best: Point | None) -> str:
    """Return the result as a sentence."""
    if best is not None:
        figures = f"{best.measured.throughput:.0f} requests/s, p99 {best.measured.p99_seconds * 1000:.1f} ms"
        where = f"with {_clients(best.measured.clients)}"
        if best.trial.present:
            return f"the current settings are the best for {objective}: {figures} {where}"
        return f"the best for {objective}: {best.trial.setting} ({figures} {where})"
    measured = [trial for trial in trials if trial.state is TrialState.MEASURED]
    if not measured:
        first = next((trial.message for trial in trials if trial.message), "the time limit was reached")
        return f"no setting could be measured: {first}"
    nearest = min(measured, key=lambda trial: rank(trial, objective))
    one = min(nearest.measurements, key=lambda m: (objective.shortfall(m), -objective.value(m)))
    return (
        f"no setting meets the objective ({objective}); the closest is {nearest.setting}: "
        f"{one.throughput:.0f} requests/s, p99 {one.p99_seconds * 1000:.1f} ms with "
        f"{_clients(one.clients)}"
    )


def _clients(count: int) -> str:
    return f"{count} client{'s' * (count > 1)}"
