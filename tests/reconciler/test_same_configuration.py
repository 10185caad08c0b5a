"""Two loads of one version at one place send the same configuration except for the version policy. Pure."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.index_states import READY
from controlplane.domain.states import LoadedVersion
from controlplane.lifecycle.actions import Load
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.lifecycle.state import Target
from controlplane.triton.instance_groups import Gpus, asked_gpus, on_gpus, present_gpus, said_gpus

DIGEST = "d"
ON_SERVER = (0, 1)
"""The GPUs that this test's Triton has, where it has any."""

groups = st.lists(
    st.fixed_dictionaries(
        {"count": st.integers(1, 2)},
        optional={
            "kind": st.sampled_from(["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"]),
            "gpus": st.lists(st.integers(0, 1), max_size=2, unique=True),
        },
    ),
    min_size=1,
    max_size=2,
)
places: st.SearchStrategy[Gpus | None] = st.sampled_from([None, (), (0,), (1,), (0, 1)])
sequences = st.lists(st.tuples(st.sampled_from([(1,), (1, 2), (2, 1), (2,)]), places, st.booleans()), max_size=6)


def resolved(config: dict[str, Any], *, has_gpus: bool) -> dict[str, Any]:
    """Return a configuration as Triton reports it with completed instance groups."""
    made = []
    for group in config["instance_group"]:
        kind, gpus = group.get("kind", "KIND_AUTO"), list(group.get("gpus", ()))
        if kind == "KIND_AUTO":
            kind = "KIND_GPU" if has_gpus else "KIND_CPU"
        if kind == "KIND_GPU" and not gpus:
            gpus = list(ON_SERVER)
        made.append({**group, "kind": kind, "gpus": gpus if kind == "KIND_GPU" else []})
    return {**config, "instance_group": made}


def after_snapshot(facts: ReplicaObservation, config: dict[str, Any]) -> ReplicaObservation:
    """Return the observation as a snapshot reads it from Triton."""
    index = [LoadedVersion(model="m", version=version, state=READY) for version in facts.loaded]
    told: dict[str, Any] = {"gpus": {"m": present_gpus(config)}, "said_gpus": {"m": said_gpus(config)}}
    return ReplicaObservation.of("m", index, {"m": facts.digest}, {}, **told)


@given(groups, places, sequences, st.booleans())
def test_reload_of_a_kept_version_sends_the_same_configuration(
    instance_groups: list[dict[str, Any]], place: Gpus | None, loads: list[Any], has_gpus: bool
) -> None:
    config = {"name": "m", "instance_group": instance_groups, "parameters": {"other": {"string_value": "x"}}}
    said = asked_gpus(config, place)
    sent = on_gpus(config, said)
    facts = ReplicaObservation(digest=DIGEST).after(Load(Target(1, DIGEST), (1,), ""), said)
    for versions, later_place, looked in loads:
        if looked:
            facts = after_snapshot(facts, resolved(sent, has_gpus=has_gpus))
        load = Load(Target(max(versions), DIGEST), tuple(sorted(versions)), "")
        says = facts.gpus_to_say(load, asked_gpus(config, later_place))
        if facts.loaded.isdisjoint(versions):
            assert says == asked_gpus(config, later_place), "nothing stays, so the model goes to its place"
            sent = on_gpus(config, says)
        assert on_gpus(config, says) == sent
        facts = facts.after(load, says)


def test_replacement_uses_the_place_of_the_replaced_version() -> None:
    facts = ReplicaObservation(loaded=frozenset({1}), digest=DIGEST, gpus=(0,), said_gpus=(0,))
    target = Target(1, DIGEST)
    assert facts.gpus_to_say(Load(target, (1,), ""), (1,)) == (0,)
    assert facts.gpus_to_say(Load(target, (1,), "", reload=True), (1,)) == (1,)
    assert facts.gpus_to_say(Load(target, (1,), "", candidate=True), (1,)) == (1,)
    assert facts.gpus_to_say(Load(Target(1, "another"), (1,), ""), (1,)) == (1,)
    externally_modified = ReplicaObservation(
        loaded=frozenset({1}), digest=DIGEST, gpus=(0,), said_gpus=(0,), externally_modified=True
    )
    assert externally_modified.gpus_to_say(Load(target, (1,), ""), (1,)) == (1,)


def test_place_of_a_version_is_kept_when_triton_chose_it() -> None:
    facts = ReplicaObservation(loaded=frozenset({1, 2}), digest=DIGEST, gpus=(0, 1), said_gpus=None)
    narrowed = facts.after(Load(Target(1, DIGEST), (1,), ""), None)
    assert (narrowed.gpus, narrowed.said_gpus) == ((0, 1), None)
