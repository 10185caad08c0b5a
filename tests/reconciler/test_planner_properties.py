"""From any state to any desired state: the planner reaches it, stops, and never lets an unproved version serve."""

from datetime import UTC, datetime

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from controlplane.lifecycle.planner import plan
from controlplane.lifecycle.state import DesiredReplica, Target
from tests.reconciler.simulated import Nature, SimulatedTriton, World

START = datetime(2026, 1, 1, tzinfo=UTC)
MOST_STEPS = 60

versions = st.integers(1, 5)
digests = st.sampled_from(["a", "b"])
targets = st.builds(Target, versions, digests)
natures = st.dictionaries(targets, st.sampled_from(Nature), max_size=6)


@st.composite
def tritons(draw: st.DrawFn) -> SimulatedTriton:
    """Draw any state of a Triton, also states that the control plane never causes."""
    known = draw(natures)
    loaded = set(draw(st.sets(versions, max_size=3)))
    digest = draw(st.sampled_from(["a", "b", None])) if loaded else None
    loaded = {v for v in loaded if known.get(Target(v, digest or "")) is not Nature.REFUSES}
    candidate = draw(st.none() | versions)
    return SimulatedTriton(
        natures=known,
        loaded=loaded,
        digest=digest if loaded else None,
        candidate=candidate,
        candidate_digest=draw(digests) if candidate else None,
        staged=draw(st.sets(versions)) | loaded,
        candidate_staged=draw(st.sets(versions, max_size=2)) | ({candidate} if candidate else set()),
        leaving=draw(st.sets(versions, max_size=1)) - loaded,
        loading=draw(st.booleans()),
        gpu=draw(st.sampled_from([0, 0, 1])),
    )


@st.composite
def wants(draw: st.DrawFn, revision: int, now: datetime) -> DesiredReplica:
    chosen = draw(st.lists(targets, min_size=1, max_size=3, unique=True))
    history = tuple(dict.fromkeys(t.version for t in chosen[1:] if t.version != chosen[0].version))
    return DesiredReplica(
        model="m",
        revision=revision,
        revised_at=now,
        loaded=draw(st.sampled_from([True, True, True, False])),
        deleted=False,
        targets=tuple(chosen),
        history=history,
        bake_seconds=draw(st.sampled_from([0.0, 100.0])),
        trial=draw(st.none() | targets.filter(lambda target: target not in chosen)),
        fits_alongside=draw(st.booleans()),
        proof_on_record=draw(st.booleans()),
    )


def check_answer(world: World, before: Target | None, desired: DesiredReplica) -> None:
    """Check that only a version proved here, or on record and beside a fallback, replaces a proved version."""
    after = world.answering()
    if before in world.proven_here and after is not None and after != before:
        if desired.proof_on_record and after == desired.targets[0] and after not in world.proven_here:
            event("loaded once")
            assert before.digest == after.digest
            assert before.version in world.triton.loaded
            assert before in desired.targets
            return
        assert after in world.proven_here, f"{after} answers unproved in place of the proved {before}"


def alive(world: World) -> Target | None:
    """Return the versions that answer; a dead process answers no request, whatever Triton reports."""
    answering = world.answering()
    return None if answering is None or answering.version in world.triton.dead else answering


def run(world: World, desired: DesiredReplica) -> None:
    """Step until there is no action; check the invariant at every step."""
    for _ in range(MOST_STEPS):
        before = alive(world)
        if world.step(desired) is None:
            return
        check_answer(world, before, desired)
    raise AssertionError(f"not settled after {MOST_STEPS} steps: {world}")


def check_end(world: World, desired: DesiredReplica) -> None:
    """Check that the final state is the desired one, or the best available, without leftovers."""
    triton, trial = world.triton, desired.trial
    if trial is not None and desired.loaded and world.answering() == desired.targets[0]:
        good = triton.nature(trial.version, trial.digest) is Nature.GOOD
        event(f"a trial that is {'good' if good else 'bad'}")
        tried = Target(triton.candidate, triton.candidate_digest or "") if triton.candidate else None
        # A refused or broken version may be in its next retry; a good one is loaded.
        assert tried == trial if good else tried in (None, trial)
        assert triton.loaded == {desired.targets[0].version}
        return
    assert triton.candidate is None
    if not desired.loaded:
        assert not triton.loaded
        assert not triton.candidate_staged
        return
    wanted = desired.targets[0]
    nature = triton.nature(wanted.version, wanted.digest)
    if nature is Nature.GOOD:
        event("reached the desired state")
        assert world.answering() == wanted
        assert wanted in world.proven_here
        assert triton.gpu == world.place
        beside = triton.loaded - {wanted.version}
        assert len(beside) <= 1
        assert beside <= set(desired.history)
        assert triton.staged == triton.loaded
        assert not triton.candidate_staged
        assert plan(desired, world.observe(), world.now) is None
    else:
        event(f"desired a target that {nature.value}")
        assert wanted in world.record.failures
        answering = world.answering()
        usable = [t for t in desired.targets if triton.nature(t.version, t.digest) is Nature.GOOD]
        if usable:
            assert answering in usable
            assert answering in world.proven_here
        elif answering is not None:
            # A version that is not desired continues to serve only while it is not known to be bad.
            assert not world.observe().mark(answering.version).bad


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_planner_reaches_any_desired_states_from_any_state(data: st.DataObject) -> None:
    check_revisions(data)


@pytest.mark.long
@settings(max_examples=1500, deadline=None)
@given(data=st.data())
def test_planner_reaches_any_desired_states_from_many_states(data: st.DataObject) -> None:
    check_revisions(data)


def check_revisions(data: st.DataObject) -> None:
    """Check that each of several revisions is reached from a drawn state."""
    world = World(data.draw(tritons()), START)
    for revision in range(1, data.draw(st.integers(2, 5))):
        desired = data.draw(wants(revision, world.now))
        world.place = data.draw(st.sampled_from([0, 0, 1]))
        world.record = world.record.wanted_again(desired.targets[0])
        if desired.trial is not None:
            world.record = world.record.wanted_again(desired.trial)
        # Failures of fallbacks belong to earlier revisions; they are final only after a wrong answer.
        run(world, desired)
        for _ in range(14):  # background retries of failed versions must not change the active version
            world.wait(400)
            run(world, desired)
        check_end(world, desired)


DISTURBANCES = ["restart_triton", "restart_control_plane", "external_unload", "kill_processes", "wait"]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_planner_reaches_desired_state_despite_disturbances(data: st.DataObject) -> None:
    world = World(data.draw(tritons()), START)
    desired = data.draw(wants(1, world.now))
    for disturbance in data.draw(st.lists(st.sampled_from(DISTURBANCES), max_size=5)):
        for _ in range(data.draw(st.integers(0, 8))):
            before = alive(world)
            if world.step(desired) is None:
                break
            check_answer(world, before, desired)
        event(disturbance)
        if disturbance == "wait":
            world.wait(data.draw(st.sampled_from([1.0, 50.0, 500.0])))
        else:
            getattr(world, disturbance)()
    for _ in range(14):
        run(world, desired)
        world.wait(400)
    run(world, desired)
    if desired.loaded and world.triton.dead:
        world.kill_processes()  # the probe that finds an unnoticed failure
        run(world, desired)
    check_end(world, desired)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), fits_alongside=st.booleans())
def test_rollout_loads_three_versions_only_when_they_fit(data: st.DataObject, fits_alongside: bool) -> None:
    world = World(SimulatedTriton(natures={}), START)
    previous: list[int] = []
    for revision in range(1, 6):
        target = data.draw(targets)
        desired = DesiredReplica(
            model="m",
            revision=revision,
            revised_at=world.now,
            loaded=True,
            targets=(target,),
            history=tuple(v for v in reversed(previous) if v != target.version),
            bake_seconds=100.0,
            fits_alongside=fits_alongside,
        )
        run(world, desired)
        previous.append(target.version)
        assert world.answering() == target
        assert world.peak_replicas <= (3 if fits_alongside else 2)
