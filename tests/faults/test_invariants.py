"""The checks find their violations: each invariant is broken by the test and reported."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSpec
from controlplane.registry.blobs import blob_key
from controlplane.registry.registry import Registry
from controlplane.settings import StoreSettings
from controlplane.storage.filesystem import FilesystemStore
from tests.faults.clients import Asker, Work
from tests.faults.invariants import Auditor, nothing_left_over
from tests.faults.record import Answer, Change, Published, Record
from tests.support.registries import new_registry, publish

SHA = "sha of what was sent"


@dataclass
class Scene:
    registry: Registry
    record: Record
    auditor: Auditor

    def problems(self) -> list[str]:
        return self.auditor.audit(self.record)

    def deploy(self, version: int) -> int:
        before = self.registry.deployments.list(fresh=True)
        spec = DeploymentSpec(model="m", reference=f"m:{version}", version=version)
        return self.registry.deployments.put(spec, after=before[0] if before else None, actor="t", reason="").number


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    store = FilesystemStore(tmp_path / "store")
    registry = new_registry(store, tmp_path / "cache")
    record = Record()
    for number in (1, 2):
        entry = publish(registry, tmp_path / str(number), f"model {number}".encode())
        digest = registry.manifest("m", entry.number).files[0].sha256
        record.published.append(Published("m", entry.number, digest, float(number)))
    auditor = Auditor(StoreSettings(url=(tmp_path / "store").as_uri()), tmp_path)
    found = Scene(registry, record, auditor)
    record.deployments["m"] = [Change(2, Answer.DONE, found.deploy(2))]
    registry.set_alias("m", "champion", 1, actor="t")
    record.aliases["m", "champion"] = [Change(1, Answer.DONE)]
    yield found
    auditor.close()


def test_intact_system_has_no_violations(scene: Scene) -> None:
    assert scene.problems() == []


def _lost_publish(scene: Scene) -> None:
    scene.record.published.append(Published("m", 3, SHA, 3.0))


def _twice_one_number(scene: Scene) -> None:
    scene.record.published.append(replace(scene.record.published[0], sha256=SHA))


def _half_a_version(scene: Scene) -> None:
    scene.registry.store.delete(blob_key(scene.record.published[1].sha256))


def _lost_move(scene: Scene) -> None:
    scene.record.aliases["m", "champion"].append(Change(2, Answer.DONE))


def _lost_deployment(scene: Scene) -> None:
    scene.record.deployments["m"].append(Change(1, Answer.DONE, 2))


def _another_end(scene: Scene) -> None:
    scene.deploy(1)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (_lost_publish, "m:3 was acknowledged and is missing"),
        (_twice_one_number, "two publishers"),
        (_half_a_version, "m:2 is incomplete"),
        (_lost_move, "alias m@champion is 1"),
        (_lost_deployment, "revision 2 of m (1) was acknowledged and is missing"),
        (_another_end, "m wants 1; possible after the last request: [2]"),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("_"),
)
def test_each_broken_invariant_is_found(scene: Scene, break_it: Callable[[Scene], None], words: str) -> None:
    break_it(scene)
    assert any(words in problem for problem in scene.problems()), scene.problems()


def test_change_without_answer_may_be_applied_or_not(scene: Scene) -> None:
    scene.record.aliases["m", "champion"].append(Change(2, Answer.LOST))
    assert scene.problems() == []
    scene.registry.set_alias("m", "champion", 2, actor="t")
    assert scene.problems() == []


def test_refused_change_must_not_be_applied(scene: Scene) -> None:
    scene.record.aliases["m", "champion"].append(Change(2, Answer.REFUSED))
    scene.registry.set_alias("m", "champion", 2, actor="t")
    assert any("alias m@champion is 2" in problem for problem in scene.problems())


def test_missing_answer_is_excused_only_during_an_injected_fault() -> None:
    record = Record()
    work, asker = Work(["http://127.0.0.1:9"], "t", record, random.Random(1)), Asker("http://127.0.0.1:9", record)
    record.excuse("api")
    record.excuse("triton")
    assert asker.ask("m") is None
    with pytest.raises(Exception, match="refused"):
        work.move("m", "champion", 1)
    assert record.violations == []
    record.expect("api")
    record.expect("triton")
    assert asker.ask("m") is None
    with pytest.raises(Exception, match="refused"):
        work.move("m", "champion", 1)
    assert ["m answered before and no longer does" in record.violations[0], "no answer" in record.violations[1]] == [
        True,
        True,
    ]
    work.caller.close()
    asker.close()


def test_leftovers_in_a_model_repository_are_found(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    assert nothing_left_over(tmp_path) == []
    (tmp_path / "m" / ".incomplete-1").mkdir()
    (tmp_path / "m~candidate").mkdir()
    assert len(nothing_left_over(tmp_path)) == 2
