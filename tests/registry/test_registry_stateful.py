"""Two instances of the registry, compared with a simple model of it."""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.names import Reference
from controlplane.errors import AlreadyExistsError, InUseError, NotFoundError
from controlplane.registry.registry import Registry
from controlplane.storage.memory import MemoryStore
from tests.support.registries import artifact, new_registry

names = st.sampled_from(["a", "b", "a.b"])
aliases = st.sampled_from(["champion", "staging"])
numbers = st.integers(1, 5)
replicas = st.integers(0, 1)
contents = st.sampled_from([b"one", b"two", b"three"])


@dataclass
class Expected:
    versions: dict[int, bytes] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    description: str = ""
    taken: int = 0
    exists: bool = False
    deployed: int | None = None


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = MemoryStore()
        self.replicas: list[Registry] = [new_registry(self.store, self.folder / f"cache{n}") for n in range(2)]
        self.expected = {name: Expected() for name in ("a", "b", "a.b")}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(at=replicas, name=names, content=contents, also=st.lists(aliases, unique=True))
    def publish(self, at: int, name: str, content: bytes, also: list[str]) -> None:
        manifest, files = artifact(self.folder / "artifact", model=content)
        entry = self.replicas[at].publish(name, manifest, files, actor="t", aliases=also)
        want = self.expected[name]
        want.taken += 1
        want.exists = True
        assert entry.number == want.taken
        want.versions[want.taken] = content
        want.aliases |= dict.fromkeys(also, want.taken)

    @rule(at=replicas, name=names)
    def create(self, at: int, name: str) -> None:
        want = self.expected[name]
        try:
            self.replicas[at].create_model(name, actor="t")
        except AlreadyExistsError:
            assert want.exists
        else:
            assert not want.exists
            want.exists, want.description = True, ""

    @rule(at=replicas, name=names, text=st.sampled_from(["x", "y"]))
    def describe(self, at: int, name: str, text: str) -> None:
        want = self.expected[name]
        try:
            self.replicas[at].update_model(name, description=text, actor="t")
        except NotFoundError:
            assert not want.exists
        else:
            want.description = text

    @rule(at=replicas, name=names, alias=aliases, number=numbers)
    def set_alias(self, at: int, name: str, alias: str, number: int) -> None:
        want = self.expected[name]
        try:
            self.replicas[at].set_alias(name, alias, number, actor="t")
        except NotFoundError:
            assert number not in want.versions
        else:
            assert number in want.versions
            want.aliases[alias] = number

    @rule(at=replicas, name=names, alias=aliases)
    def remove_alias(self, at: int, name: str, alias: str) -> None:
        try:
            self.replicas[at].remove_alias(name, alias, actor="t")
        except NotFoundError:
            assert alias not in self.expected[name].aliases
        else:
            del self.expected[name].aliases[alias]

    @rule(at=replicas, name=names, number=numbers)
    def delete_version(self, at: int, name: str, number: int) -> None:
        want = self.expected[name]
        try:
            self.replicas[at].delete_version(name, number, actor="t")
        except NotFoundError:
            assert number not in want.versions
        except InUseError:
            assert number in want.aliases.values() or number == want.deployed
        else:
            assert number not in want.aliases.values()
            assert number != want.deployed
            del want.versions[number]

    @rule(at=replicas, name=names)
    def delete_model(self, at: int, name: str) -> None:
        want = self.expected[name]
        try:
            self.replicas[at].delete_model(name, actor="t")
        except NotFoundError:
            assert not want.exists
        except InUseError:
            assert want.deployed is not None
        else:
            assert want.deployed is None
            want.versions, want.aliases, want.exists = {}, {}, False

    @rule(at=replicas, name=names, number=numbers)
    def deploy(self, at: int, name: str, number: int) -> None:
        want = self.expected[name]
        deployments = self.replicas[at].deployments
        before = deployments.get(name) if want.deployed is not None else None
        spec = DeploymentSpec(
            model=name, reference=f"{name}:{number}", version=number, settings=DeploymentSettings(bake_seconds=0)
        )
        try:
            deployments.put(spec, after=before, actor="t", reason="deploy")
        except NotFoundError:
            assert number not in want.versions
        else:
            assert number in want.versions
            want.deployed = number

    @rule(at=replicas, name=names)
    def undeploy(self, at: int, name: str) -> None:
        deployments = self.replicas[at].deployments
        try:
            before = deployments.get(name)
        except NotFoundError:
            assert self.expected[name].deployed is None
        else:
            deployments.put(before.spec.with_changes(deleted=True), after=before, actor="t", reason="undeploy")
            self.expected[name].deployed = None

    @rule(at=replicas)
    def collect(self, at: int) -> None:
        self.replicas[at].collect(dry_run=False, grace_seconds=0)
        # The file blobs are exactly the contents of live versions. (Manifests are blobs too, and start with "{".)
        there = {self.store.get(info.key) for info in self.store.list("blobs/")}
        live = {content for want in self.expected.values() for content in want.versions.values()}
        assert {content for content in there if not content.startswith(b"{")} == live

    @precondition(lambda self: any(want.exists for want in self.expected.values()))
    @invariant()
    def both_replicas_agree_with_the_model(self) -> None:
        for registry in self.replicas:
            assert [head.name for head in registry.list_models()] == sorted(
                (name for name, want in self.expected.items() if want.exists), key=lambda name: name + "/"
            )
            assert {revision.spec.model: revision.spec.version for revision in registry.deployments.list()} == {
                name: want.deployed for name, want in self.expected.items() if want.deployed is not None
            }
            for name, want in self.expected.items():
                if not want.exists:
                    continue
                head = registry.get_model(name)
                assert [entry.number for entry in head.live_versions] == sorted(want.versions)
                assert (head.aliases, head.description) == (want.aliases, want.description)
                assert head.next_number == want.taken + 1
                for number, content in want.versions.items():
                    (file,) = registry.manifest(name, number).files
                    assert file.sha256 == hashlib.sha256(content).hexdigest()
                    assert registry.read_blob(file.sha256) == content
                for alias, number in want.aliases.items():
                    assert registry.resolve(Reference(name, alias=alias)).number == number

    @invariant()
    def histories_have_no_gaps(self) -> None:
        for name, want in self.expected.items():
            if want.exists:
                history = [revision.number for revision in self.replicas[0].history(name)]
                assert history == list(range(len(history), 0, -1))


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
