"""The search's decisions: the space, the rounds, the frontier, the choice."""

import itertools
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controlplane.domain.deployment import DeploymentSettings, DynamicBatching
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Sample
from controlplane.domain.tuning import (
    NOISE,
    Goal,
    Measurement,
    Objective,
    Setting,
    Trial,
    TrialState,
    choose,
    frontier,
    points,
)
from controlplane.errors import InvalidInputError
from controlplane.services.tuning.load_generator import percentile
from controlplane.services.tuning.plot import plot
from controlplane.services.tuning.search import (
    Race,
    Space,
    applied,
    default_space,
    fits,
    present_setting,
    round_end,
    rounds,
    settings_to_try,
)
from controlplane.services.tuning.trial_model import most_rows, requests_of

UNTIMED = hypothesis_settings(deadline=None)
SETTINGS = st.builds(
    Setting,
    instances=st.integers(1, 8),
    max_batch_size=st.sampled_from([8, 16, 32]),
    queue_delay_microseconds=st.sampled_from([None, 0, 500]),
    threads=st.sampled_from([None, 1, 2]),
)
MEASUREMENTS = st.builds(
    Measurement,
    clients=st.sampled_from([1, 4, 16]),
    window_seconds=st.just(1.0),
    answers=st.integers(1, 5000),
    throughput=st.floats(0.1, 1e5),
    p50_seconds=st.just(0.001),
    p99_seconds=st.floats(1e-4, 10),
    spread=st.sampled_from([0.0, 0.1, 2.0]),
)
TRIALS = st.lists(
    st.builds(
        Trial,
        setting=SETTINGS,
        state=st.sampled_from(TrialState),
        measurements=st.lists(MEASUREMENTS, min_size=1, max_size=3).map(tuple),
        memory_bytes=st.one_of(st.none(), st.integers(1, 1 << 30)),
    ),
    max_size=12,
)
LIMITS = st.one_of(st.none(), st.floats(1e-4, 1e4))
OBJECTIVES = st.builds(Objective, goal=st.sampled_from(Goal), max_p99_seconds=LIMITS, min_throughput=LIMITS)


def measured(throughput: float, p99: float, clients: int = 1) -> Measurement:
    return Measurement(
        clients=clients, window_seconds=1, answers=100, throughput=throughput, p50_seconds=p99 / 2, p99_seconds=p99
    )


def trial(setting: Setting, *measurements: Measurement, **fields: object) -> Trial:
    return Trial.model_validate(
        {"setting": setting, "state": TrialState.MEASURED, "measurements": measurements, **fields}
    )


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    def some(values: list[int]) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True)))

    delays = tuple(draw(st.lists(st.sampled_from([None, 0, 100, 500]), min_size=1, unique=True)))
    return Space(
        instances=some([1, 2, 3, 4]),
        max_batch_sizes=some([1, 4, 8, 32]),
        queue_delays_microseconds=delays,
        preferred_batch_sizes=some([4, 8, 16]) if draw(st.booleans()) else (),
        threads=tuple(draw(st.lists(st.sampled_from([None, 1, 2, 4]), min_size=1, unique=True))),
    )


@UNTIMED
@given(spaces(), SETTINGS, st.integers(0, 40), st.integers(1, 20), st.sampled_from([None, 2, 4]))
def test_settings_to_try_are_limited_distinct_and_accept_all_requests(
    space: Space, present: Setting, rows: int, at_most: int, cores: int | None
) -> None:
    tried = settings_to_try(space, present, rows=rows, at_most=at_most, cores=cores)
    assert 1 <= len(tried) <= min(at_most, space.combinations + 1)
    assert tried[0] == present
    assert len(set(tried)) == len(tried)
    for setting in tried[1:]:
        assert setting.max_batch_size >= min(rows, present.max_batch_size)
        assert setting.instances in space.instances
        assert all(size <= setting.max_batch_size for size in setting.preferred_batch_sizes)
        if setting.queue_delay_microseconds is None:
            assert setting.max_batch_size == present.max_batch_size
            assert not setting.preferred_batch_sizes
        # Written to a deployment, each is valid there.
        applied(setting, DeploymentSettings(), Format.ONNX)


def test_few_settings_are_spread_over_the_space() -> None:
    present = Setting(instances=1, max_batch_size=8)
    space = default_space(present, batched=True, cores=8, on_gpu=False)
    tried = settings_to_try(space, present, rows=1, at_most=8, cores=8)
    assert len({setting.instances for setting in tried}) >= 3
    assert len({setting.queue_delay_microseconds for setting in tried}) >= 3
    assert len({setting.max_batch_size for setting in tried}) >= 2
    assert len({setting.threads for setting in tried}) >= 2
    # 8 threads for one instance are the backend's default, so they are not tried again.
    everything = settings_to_try(space, present, rows=1, at_most=1000, cores=8)
    assert Setting(instances=1, max_batch_size=8, threads=8) not in everything
    assert Setting(instances=2, max_batch_size=8, threads=8) in everything


def test_a_model_without_a_batch_dimension_is_never_batched() -> None:
    present = present_setting(DeploymentSettings(), 0)
    space = default_space(present, batched=False, cores=2, on_gpu=False)
    tried = settings_to_try(space, present, rows=0, at_most=100, cores=2)
    assert {setting.max_batch_size for setting in tried} == {0}
    assert {setting.queue_delay_microseconds for setting in tried} == {None}
    assert len(tried) == 4  # one or two instances, with the backend's own or the other number of threads


def test_setting_changes_only_its_own_deployment_fields() -> None:
    have = DeploymentSettings(
        bake_seconds=7, parameters={"Intra_Op_Num_Threads": "3", "session.x": "1"}, config_overrides={"max_queue": 1}
    )
    setting = Setting(
        instances=2, max_batch_size=16, queue_delay_microseconds=500, preferred_batch_sizes=(16,), threads=2
    )
    after = applied(setting, have, Format.ONNX)
    assert after == have.model_copy(
        update={
            "instance_count": 2,
            "max_batch_size": 16,
            "dynamic_batching": DynamicBatching(preferred_batch_size=(16,), max_queue_delay_microseconds=500),
            "parameters": {"session.x": "1", "intra_op_thread_count": "2"},
        }
    )
    assert present_setting(after, 16) == setting
    assert present_setting(have, 8).threads == 3
    assert "INTRA_OP_THREAD_COUNT" in applied(setting, have, Format.TORCHSCRIPT).parameters


@UNTIMED
@given(st.integers(1, 300))
def test_rounds_shrink_and_their_number_is_small(count: int) -> None:
    sizes = rounds(count)
    assert sizes[0] == count
    assert len(sizes) <= 3
    assert list(sizes) == sorted(sizes, reverse=True)
    assert sizes[-1] >= min(2, count)


@UNTIMED
@given(st.floats(0, 1e5), st.floats(-10, 1e4), st.integers(1, 4))
def test_rounds_share_the_remaining_time(now: float, left: float, count: int) -> None:
    ends = [round_end(now, now + left, number, count) for number in range(count)]
    assert all(now <= end <= max(now, now + left) + 1e-6 for end in ends)
    assert math.isclose(ends[-1], max(now, now + left), abs_tol=1e-6)


@UNTIMED
@given(st.lists(SETTINGS, min_size=1, max_size=20, unique=True), OBJECTIVES, st.data())
def test_race_ends_with_one_outcome_for_each_setting(
    settings: list[Setting], objective: Objective, data: st.DataObject
) -> None:
    race = Race(settings, objective)
    lines = []
    while line := race.next_round():
        lines.append(line)
        for setting in line:
            if lines[1:] and data.draw(st.integers(0, 20)) == 0:
                break  # the time was up
            race.record(
                Trial(
                    setting=setting,
                    state=data.draw(st.sampled_from([TrialState.MEASURED, TrialState.WRONG, TrialState.MEMORY])),
                    measurements=(data.draw(MEASUREMENTS),),
                )
            )
    assert len(lines) <= race.count == len(rounds(len(settings)))
    assert all(set(later) <= set(earlier) for earlier, later in itertools.pairwise(lines))
    outcome = race.outcome()
    assert [one.setting for one in outcome] == settings
    assert [one.present for one in outcome] == [True] + [False] * (len(settings) - 1)
    # Only settings of one and the same round are compared.
    assert len({one.round for one in outcome if one.state is TrialState.MEASURED}) <= 1
    best = choose(outcome, objective)
    assert best is None or best.trial.state is TrialState.MEASURED


def test_current_setting_stays_and_the_worst_settings_are_dropped() -> None:
    settings = [Setting(instances=1, max_batch_size=8, threads=number) for number in range(1, 13)]
    race = Race(settings, Objective())
    first = race.next_round()
    for number, setting in enumerate(first):
        race.record(trial(setting, measured(10.0 + number, 0.1)))
    second = race.next_round()
    assert second == (settings[11], settings[0], *settings[10:7:-1])
    for number, setting in enumerate(second):
        race.record(trial(setting, measured(20.0 + number, 0.1)))
    third = race.next_round()
    assert set(third) == {second[4], second[3], settings[0]}
    race.record(trial(third[0], measured(1000.0, 0.1)))
    # The last round was not finished, so the one before decides.
    outcome = race.outcome()
    assert {one.setting for one in outcome if one.state is TrialState.MEASURED} == set(second)
    best = choose(outcome, Objective())
    assert best is not None
    assert best.trial.setting == second[4]


def test_settings_not_reached_in_the_first_round_are_left_out() -> None:
    settings = [Setting(instances=1, max_batch_size=8, threads=number) for number in range(1, 10)]
    race = Race(settings, Objective())
    for number, setting in enumerate(race.next_round()[:4]):
        race.record(trial(setting, measured(10.0 + number, 0.1)))
    race.close_round()
    assert set(race.next_round()) == {settings[0], settings[1], settings[2], settings[3]}
    assert [one.state for one in race.outcome()][4:] == [TrialState.TIME] * 5


@UNTIMED
@given(TRIALS)
def test_frontier_dominates_all_other_points(trials: list[Trial]) -> None:
    everything = points(trials)
    edge = frontier(everything)
    assert bool(edge) == bool(everything)
    figures = [(one.measured.throughput, one.measured.p99_seconds) for one in edge]
    assert figures == sorted(figures)
    assert [p99 for _, p99 in figures] == sorted(p99 for _, p99 in figures)
    for point in everything:
        at_least_as_good = [
            one
            for one in edge
            if one.measured.throughput >= point.measured.throughput
            and one.measured.p99_seconds <= point.measured.p99_seconds
        ]
        assert at_least_as_good
        if point in edge:
            assert at_least_as_good == [point]


@UNTIMED
@given(TRIALS, OBJECTIVES)
def test_choice_meets_the_limits_and_is_the_best_within_the_noise(trials: list[Trial], objective: Objective) -> None:
    best = choose(trials, objective)
    good = [point for point in points(trials, finished=True) if objective.meets(point.measured)]
    assert (best is None) == (not good)
    if best is not None:
        assert best in good
        top = max(good, key=lambda point: objective.value(point.measured)).measured
        slack = max(NOISE, top.spread) * abs(objective.value(top))
        assert objective.value(best.measured) >= objective.value(top) - slack - 1e-12


@UNTIMED
@given(OBJECTIVES, MEASUREMENTS)
def test_limits_are_met_exactly_if_the_shortfall_is_zero(objective: Objective, one: Measurement) -> None:
    kept = objective.max_p99_seconds is None or one.p99_seconds <= objective.max_p99_seconds
    kept = kept and (objective.min_throughput is None or one.throughput >= objective.min_throughput)
    # A limit that is missed by less than floats can tell may count as kept.
    assert objective.meets(one) == kept or objective.shortfall(one) < 1e-12


def test_current_setting_is_kept_unless_another_is_clearly_better() -> None:
    present = trial(Setting(instances=1, max_batch_size=8), measured(100, 0.01), present=True, memory_bytes=500)
    hardly = trial(Setting(instances=2, max_batch_size=8), measured(102, 0.01), memory_bytes=1000)
    much = trial(Setting(instances=4, max_batch_size=8), measured(200, 0.01), memory_bytes=2000)
    as_much = trial(Setting(instances=3, max_batch_size=8), measured(198, 0.01), memory_bytes=1500)
    first = choose([present, hardly], Objective())
    second = choose([present, much, as_much], Objective())
    assert first is not None
    assert first.trial is present
    unsure = much.model_copy(update={"measurements": (measured(120, 0.01).model_copy(update={"spread": 0.2}),)})
    third = choose([present, unsure], Objective())
    assert third is not None
    assert third.trial is present, "20 % more, give or take 20 %"
    assert second is not None
    assert second.trial is as_much, "less memory for the same"


@UNTIMED
@given(st.lists(st.floats(0, 100), min_size=1, max_size=300), st.floats(0.1, 100))
def test_percentile_is_the_smallest_value_that_covers_the_share(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values) - 1e-9
    below = [value for value in values if value < found]
    assert len(below) < percent / 100 * len(values)


def test_percentile_of_no_values_is_rejected() -> None:
    with pytest.raises(ValueError, match="not defined"):
        percentile([], 50)


@UNTIMED
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 9))
def test_requests_are_shortened_together_with_their_responses(sizes: list[int], rows: int) -> None:
    counted = iter(range(100))
    samples = []
    for size in sizes:
        x = np.array([[next(counted)] for _ in range(size)], dtype=np.float32)
        samples.append(Sample({"x": x}, {"y": 2 * x}))
    requests = requests_of(samples, rows)
    assert {request.inputs["x"].shape for request in requests} == {(rows, 1)}
    assert all((request.outputs["y"] == 2 * request.inputs["x"]).all() for request in requests)
    sent = {float(value) for request in requests for value in request.inputs["x"].ravel()}
    assert sent == set(range(sum(sizes))), "every recorded row is sent"
    assert most_rows(requests_of(samples, None)) == max(sizes)


def test_requests_that_exceed_memory_are_rejected() -> None:
    x = np.zeros((1, 1 << 20), dtype=np.float32)
    with pytest.raises(InvalidInputError, match="fewer rows"):
        requests_of([Sample({"x": x}, {"y": x})], 1000)


def test_setting_that_cannot_fit_is_detected_before_its_load() -> None:
    setting = Setting(instances=3, max_batch_size=8)
    assert fits(setting, None, 100)
    assert fits(setting, 33, 100)
    assert not fits(setting, 34, 100)
    assert fits(setting, 34, None)


@UNTIMED
@given(TRIALS, OBJECTIVES)
def test_plot_is_valid_svg_for_any_measurements(trials: list[Trial], objective: Objective) -> None:
    svg = plot("a<b>&c:1", trials, objective, choose(trials, objective))
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "nan" not in svg
    assert "inf" not in svg
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= 960
        assert 0 <= float(circle.attrib["cy"]) <= 520
    assert bool(circles) == bool(points(trials))
