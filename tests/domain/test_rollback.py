"""Where a rollback goes."""

from dataclasses import dataclass

import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.rollout.rollback import rollback_revision, rollback_target
from controlplane.errors import ConflictError, NotFoundError


@dataclass(frozen=True)
class Revision:
    number: int
    spec: DeploymentSpec


def history(*specs: DeploymentSpec) -> list[Revision]:
    """Revisions in the order they were committed, as a chain lists them: newest first."""
    return [Revision(number, spec) for number, spec in enumerate(specs, 1)][::-1]


def spec(version: int, **changes: object) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"model": "m", "reference": f"m:{version}", "version": version, **changes})


def test_rollback_restores_the_previous_revision_and_can_be_undone() -> None:
    assert rollback_target(history(spec(1), spec(2))).version == 1
    assert rollback_target(history(spec(1), spec(2), spec(1))).version == 2


def test_rollback_pins_the_version_of_an_alias() -> None:
    target = rollback_target(history(spec(1, reference="m@champion"), spec(2, reference="m@champion")))
    assert target.reference == "m:1"


def test_revisions_with_the_same_version_and_settings_are_skipped() -> None:
    one = rollback_target(history(spec(1), spec(2), spec(2, loaded=False), spec(2)))
    assert (one.version, one.loaded) == (1, True)
    other = DeploymentSettings(max_batch_size=4)
    assert rollback_target(history(spec(1), spec(1, settings=other))).settings == DeploymentSettings()


def test_removals_are_skipped() -> None:
    assert rollback_target(history(spec(1), spec(1, deleted=True), spec(2))).version == 1


def test_rollback_to_a_named_revision() -> None:
    assert rollback_target(history(spec(1), spec(2), spec(3)), 1).version == 1
    with pytest.raises(NotFoundError, match="no revision 7"):
        rollback_target(history(spec(1), spec(2)), 7)
    with pytest.raises(ConflictError, match="removed the deployment"):
        rollback_target(history(spec(1), spec(1, deleted=True), spec(2)), 2)


@pytest.mark.parametrize(
    "chain", [[], history(spec(1)), history(spec(1), spec(1)), history(spec(1), spec(1, deleted=True))]
)
def test_rollback_without_an_earlier_revision_fails(chain: list[Revision]) -> None:
    with pytest.raises(ConflictError):
        rollback_target(chain)


def test_the_history_is_read_no_further_than_needed() -> None:
    rest = iter(history(spec(1), spec(2), spec(3)))
    assert rollback_revision(rest).number == 2
    assert [revision.number for revision in rest] == [1]
