"""Selection of the settings to try, how long each is measured, and which of them continue. Pure.

Successive halving: all settings get a short measurement, the best third a longer one, and so on, and each round gets
the same share of the time (Karnin, Koren and Somekh, "Almost Optimal Exploration in Multi-Armed Bandits", ICML 2013;
Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016,
https://arxiv.org/abs/1502.07943). So a poor setting costs a second, and the deciding measurements are the longest.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from controlplane.domain.deployment import DeploymentSettings, DynamicBatching
from controlplane.domain.manifest import Format
from controlplane.domain.tuning import Objective, Setting, Trial, TrialState, rank

ETA = 3
"""One in this many settings continues to the next round, where each is measured for this many times as long."""
MOST_ROUNDS = 3

_THREADS = {Format.ONNX: "intra_op_thread_count", Format.TORCHSCRIPT: "INTRA_OP_THREAD_COUNT"}
_OTHER_THREADS = frozenset({"intra_op_thread_count", "intra_op_num_threads"})
_DELAYS = (0, 500, 2000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The values to combine.

    Attributes:
        instances: Instance counts.
        max_batch_sizes: Largest batches, for settings that batch dynamically.
        queue_delays_microseconds: Delays of the dynamic batcher; None stands for no dynamic batching.
        preferred_batch_sizes: Batches to aim for, each tried alone, besides none; empty: the largest batch.
        threads: Threads within an operator; None leaves it to the backend.
    """

    instances: tuple[int, ...]
    max_batch_sizes: tuple[int, ...]
    queue_delays_microseconds: tuple[int | None, ...]
    preferred_batch_sizes: tuple[int, ...] = ()
    threads: tuple[int | None, ...] = (None,)

    @property
    def combinations(self) -> int:
        """Return the maximum number of combinations."""
        batched = len(self.max_batch_sizes) * (1 + max(1, len(self.preferred_batch_sizes)))
        return len(self.instances) * len(self.threads) * len(self.queue_delays_microseconds) * max(1, batched)


def default_space(present: Setting, *, batched: bool, cores: int, on_gpu: bool) -> Space:
    """Return the values that are worth trying around the present setting.

    The largest batch is never smaller than the present one, because requests that are accepted now would be refused.

    Args:
        present: The deployment's setting.
        batched: Whether Triton may combine requests.
        cores: The cores that the instances share.
        on_gpu: Whether they run on a GPU, where threads do not matter.
    """
    counts = {1, 2, 4} if on_gpu else {1, 2, max(1, cores // 2), cores}
    largest = present.max_batch_size
    return Space(
        instances=tuple(sorted(counts | {present.instances})),
        max_batch_sizes=(largest, 2 * largest, 4 * largest) if batched and largest else (),
        queue_delays_microseconds=(None, *_DELAYS) if batched and largest else (None,),
        threads=(None,) if on_gpu else (None, *sorted({1, cores})),
    )


def present_setting(settings: DeploymentSettings, max_batch_size: int) -> Setting:
    """Return the deployment's settings as a point of the space.

    Args:
        settings: The deployment's settings.
        max_batch_size: The largest batch of the configuration that is made from them.
    """
    batching = settings.dynamic_batching
    threads = [value for name, value in settings.parameters.items() if name.lower() in _OTHER_THREADS]
    return Setting(
        instances=settings.instance_count,
        max_batch_size=max_batch_size,
        queue_delay_microseconds=batching.max_queue_delay_microseconds if batching else None,
        preferred_batch_sizes=batching.preferred_batch_size if batching else (),
        threads=int(threads[0]) if threads and threads[0].isdigit() and int(threads[0]) > 0 else None,
    )


def applied(setting: Setting, settings: DeploymentSettings, kind: Format) -> DeploymentSettings:
    """Return a deployment's settings with those of a point of the space; all others are unchanged."""
    parameters = {name: value for name, value in settings.parameters.items() if name.lower() not in _OTHER_THREADS}
    if setting.threads is not None:
        parameters[_THREADS[kind]] = str(setting.threads)
    batching = None
    if setting.queue_delay_microseconds is not None:
        batching = DynamicBatching(
            preferred_batch_size=setting.preferred_batch_sizes,
            max_queue_delay_microseconds=setting.queue_delay_microseconds,
        )
    return DeploymentSettings.model_validate(
        {
            **settings.model_dump(),
            "instance_count": setting.instances,
            "max_batch_size": setting.max_batch_size,
            "dynamic_batching": batching,
            "parameters": parameters,
        }
    )


def settings_to_try(
    space: Space, present: Setting, *, rows: int, at_most: int, cores: int | None = None
) -> tuple[Setting, ...]:
    """Return different settings, the present one first, then each as unlike those before it as possible.

    So the settings tried are spread over the whole space, whatever their number and wherever the time ends the list.

    Args:
        space: The values.
        present: The deployment's setting; always tried, for comparison.
        rows: Rows of the largest request; a smaller batch would refuse it.
        at_most: The maximum number of settings.
        cores: The cores shared by a backend that divides them between its instances if no threads are given; None if
            the backend does not, or if that is unknown.
    """
    grid = dict.fromkeys(_canonical(setting, cores) for setting in _combined(space, present, rows))
    grid.pop(_canonical(present, cores), None)
    grid.pop(present, None)
    chosen = [present]
    left = list(grid)
    scales = _Scales([present, *left])
    # The distance to the nearest setting that is already chosen; the first is the farthest from the present one.
    near = [scales.distance(setting, present) for setting in left]
    while left and len(chosen) < at_most:
        position = max(range(len(left)), key=lambda index: near[index])
        taken = left.pop(position)
        near.pop(position)
        chosen.append(taken)
        near = [min(before, scales.distance(setting, taken)) for before, setting in zip(near, left, strict=True)]
    return tuple(chosen)


def _combined(space: Space, present: Setting, rows: int) -> Iterator[Setting]:
    for instances, threads, delay in itertools.product(space.instances, space.threads, space.queue_delays_microseconds):
        if delay is None:
            # Without the batcher, the limit only changes which requests are refused.
            yield Setting(instances=instances, max_batch_size=present.max_batch_size, threads=threads)
            continue
        for largest in space.max_batch_sizes:
            if largest < max(rows, 1):
                continue
            # Without a delay the batcher never waits for a preferred size.
            wanted = [()] if delay == 0 else [(), *((size,) for size in space.preferred_batch_sizes or (largest,))]
            for preferred in wanted:
                if all(size <= largest for size in preferred):
                    yield Setting(
                        instances=instances,
                        max_batch_size=largest,
                        queue_delay_microseconds=delay,
                        preferred_batch_sizes=preferred,
                        threads=threads,
                    )


def _canonical(setting: Setting, cores: int | None) -> Setting:
    """Return the same form for two settings that run the same way."""
    if cores is not None and setting.threads == max(1, cores // setting.instances):
        return setting.model_copy(update={"threads": None})
    return setting


class _Scales:
    """Distances between settings: each axis counts by the rank of its values, from 0 to 1."""

    def __init__(self, settings: Iterable[Setting]) -> None:
        coordinates = [_coordinates(setting) for setting in settings]
        self._ranks = []
        for axis in zip(*coordinates, strict=True):
            values = sorted(set(axis))
            self._ranks.append({value: index / max(1, len(values) - 1) for index, value in enumerate(values)})

    def distance(self, one: Setting, other: Setting) -> float:
        return sum(
            (ranks[a] - ranks[b]) ** 2
            for ranks, a, b in zip(self._ranks, _coordinates(one), _coordinates(other), strict=True)
        )


def _coordinates(setting: Setting) -> tuple[int, ...]:
    delay = setting.queue_delay_microseconds
    return (
        setting.instances,
        setting.max_batch_size,
        -1 if delay is None else delay,
        max(setting.preferred_batch_sizes, default=0),
        setting.threads or 0,
    )


def rounds(count: int) -> tuple[int, ...]:
    """Return the maximum number of settings in each round; the last round has at least two, if there are two."""
    sizes = [count]
    while len(sizes) < MOST_ROUNDS and sizes[-1] > ETA:
        sizes.append(max(2, math.ceil(sizes[-1] / ETA)))
    return tuple(sizes)


def round_end(now: float, end: float, number: int, count: int) -> float:
    """Return when a round must end: it and the rounds after it share the remaining time equally."""
    return now + max(0.0, end - now) / (count - number)


class Race:
    """The rounds of a search: the next settings to measure, and all results. Pure bookkeeping.

    Args:
        settings: The settings to try, the present setting first.
        objective: The objective.
    """

    def __init__(self, settings: Sequence[Setting], objective: Objective) -> None:
        self._objective = objective
        self._settings = tuple(settings)
        self._sizes = rounds(len(self._settings))
        self._results: list[dict[Setting, Trial]] = []
        self._lines: list[tuple[Setting, ...]] = []

    @property
    def number(self) -> int:
        """Return the number of the present round, from 0."""
        return len(self._lines) - 1

    @property
    def count(self) -> int:
        """Return the maximum number of rounds."""
        return len(self._sizes)

    def next_round(self) -> tuple[Setting, ...]:
        """Begin a round and return its settings, best first; empty when the search is over.

        It is over after the last round, after an unfinished round, or when it would measure only one setting.
        """
        if not self._lines:
            line = self._settings
        elif len(self._lines) == self.count or not self._is_whole(self.number):
            line = ()
        else:
            line = go_on(tuple(self._results[-1].values()), self._objective, self._sizes[len(self._lines)])
            line = () if len(line) < 2 else line
        if line:
            self._lines.append(line)
            self._results.append({})
        return line

    def close_round(self) -> None:
        """Continue without the settings that the present round did not reach."""
        self._lines[-1] = tuple(setting for setting in self._lines[-1] if setting in self._results[-1])

    def record(self, trial: Trial) -> None:
        """Record the result of a setting in the present round."""
        present = trial.setting == self._settings[0]
        self._results[-1][trial.setting] = trial.model_copy(update={"round": self.number, "present": present})

    def outcome(self) -> tuple[Trial, ...]:
        """Return the present trial of each setting, in their first order.

        The last finished round decides, because only within one round have all settings had the same time.
        """
        whole = max((number for number in range(len(self._lines)) if self._is_whole(number)), default=0)
        found = []
        for setting in self._settings:
            seen = [results[setting] for results in self._results[: whole + 1] if setting in results]
            # A failure in an unfinished round counts all the same.
            seen += [
                results[setting]
                for results in self._results[whole + 1 :]
                if setting in results and results[setting].state is not TrialState.MEASURED
            ]
            if not seen:
                present = setting == self._settings[0]
                found.append(
                    Trial(
                        setting=setting,
                        state=TrialState.TIME,
                        present=present,
                        message="the time limit was reached before it was measured",
                    )
                )
            elif seen[-1].state is TrialState.MEASURED and seen[-1].round < whole:
                found.append(
                    seen[-1].model_copy(update={"state": TrialState.DROPPED, "message": "other settings were better"})
                )
            else:
                found.append(seen[-1])
        return tuple(found)

    def _is_whole(self, number: int) -> bool:
        return len(self._results[number]) == len(self._lines[number])


def go_on(trials: Sequence[Trial], objective: Objective, keep: int) -> tuple[Setting, ...]:
    """Return the settings that continue to the next round: the best first, and always the deployment's present one."""
    alive = [trial for trial in trials if trial.state is TrialState.MEASURED and trial.measurements]
    best = sorted(alive, key=lambda trial: rank(trial, objective))
    kept = best[:keep] + [trial for trial in best[keep:] if trial.present]
    # Second, so that there is something to compare with when the time is up.
    present = [trial for trial in kept[2:] if trial.present]
    kept = kept[:1] + present + [trial for trial in kept[1:] if trial not in present]
    return tuple(trial.setting for trial in kept)


def fits(setting: Setting, per_instance_bytes: int | None, limit_bytes: int | None) -> bool:
    """Return whether a setting's processes should fit into a memory limit, by the largest instance so far."""
    if per_instance_bytes is None or limit_bytes is None:
        return True
    return setting.instances * per_instance_bytes <= limit_bytes
