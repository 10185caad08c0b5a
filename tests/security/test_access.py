"""The pure rules: scopes, patterns of models, token buckets."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.access import Principal, Scope, check_key_name, check_patterns, included, matches
from controlplane.domain.ratelimit import Bucket, Rate, take
from controlplane.errors import ForbiddenError, InvalidInputError, InvalidNameError
from controlplane.registry.keys import ApiKeys, KeyRequest, digest_of
from controlplane.storage.memory import MemoryStore

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)


def test_scopes_include_their_documented_scopes() -> None:
    assert included([Scope.READ]) == {Scope.READ}
    assert included([Scope.INFER]) == {Scope.INFER}
    assert included([Scope.DEPLOY]) == {Scope.DEPLOY, Scope.READ}
    assert included([Scope.ADMIN]) == set(Scope)


@given(NAMES, NAMES)
def test_pattern_without_a_star_matches_only_that_name(one: str, other: str) -> None:
    assert matches((one,), other) == (one == other)


@given(NAMES, NAMES, NAMES)
def test_star_matches_any_text(head: str, middle: str, tail: str) -> None:
    assert matches((f"{head}*",), head + middle)
    assert matches((f"{head}*{tail}",), head + middle + tail)
    assert matches(("*",), middle)
    assert matches(("nothing", f"*{tail}"), middle + tail)


@pytest.mark.parametrize(
    ("pattern", "model", "fits"),
    [
        ("a.b", "axb", False),  # a dot is a dot
        ("team-*", "team-", True),
        ("team-*", "Team-a", False),
        ("team-a*", "team-b", False),
        ("*-prod", "net-prod-2", False),
        ("a*c", "a\nc", False),
    ],
)
def test_pattern_matches_model_names(pattern: str, model: str, fits: bool) -> None:
    assert matches((pattern,), model) is fits


def test_names_and_patterns_are_validated() -> None:
    for name in ("", "a/b", "x" * 65, "-a", "a b", "ä"):
        with pytest.raises(InvalidNameError):
            check_key_name(name)
    for pattern in ("", "[a-z]", "a/b", "a?", ".*|x"):
        with pytest.raises(InvalidInputError):
            check_patterns([pattern])
    assert check_patterns(["a*", "a*", "b"]) == ("a*", "b")


def test_actor_begins_with_the_authenticated_key_name() -> None:
    principal = Principal("0" * 12, "ci", included([Scope.DEPLOY]), ("team-*",))
    assert principal.actor(None) == "ci"
    assert principal.actor("ada@example.org") == "ci/ada@example.org"
    with pytest.raises(ForbiddenError, match="needs the scope 'admin'"):
        principal.require_scope(Scope.ADMIN, "collectGarbage")
    with pytest.raises(ForbiddenError, match="but not 'other'"):
        principal.require_model("other")
    principal.require_model("team-a")


@given(
    st.floats(min_value=0.01, max_value=1e4),
    st.integers(min_value=1, max_value=1000),
    st.lists(st.floats(min_value=0, max_value=10), max_size=60),
)
def test_requests_never_exceed_the_rate_limit(per_second: float, burst: int, pauses: list[float]) -> None:
    rate, bucket, now, passed = Rate(per_second, burst), None, 0.0, 0
    for pause in pauses:
        now += pause
        bucket, wait = take(bucket, rate, now)
        passed += wait == 0
        assert 0 <= bucket.tokens <= burst
    assert passed <= burst + now * per_second + 1e-6


@given(st.floats(min_value=0.01, max_value=1e4), st.integers(min_value=1, max_value=50))
def test_request_after_the_returned_wait_is_admitted(per_second: float, burst: int) -> None:
    rate, bucket = Rate(per_second, burst), Bucket(0.0, 5.0)
    bucket, wait = take(bucket, rate, 5.0)
    assert wait > 0
    _, wait = take(bucket, rate, 5.0 + wait * (1 + 1e-9))
    assert wait == 0


def test_store_contains_digests_and_no_secrets() -> None:
    store = MemoryStore()
    keys = ApiKeys(store)
    key, token = keys.create(KeyRequest("root", (Scope.ADMIN,)), actor="ada")
    keys.create(KeyRequest("ci", (Scope.DEPLOY,), ("team-*",)), actor="ada")
    keys.revoke("ci", actor="bob")
    kept = b"".join(store.get(info.key) for info in store.list(""))
    assert key.digest == digest_of(token)
    assert key.digest.encode() in kept
    assert token.rpartition("_")[2].encode() not in kept
    version, ring = keys.read()
    assert version == 3
    assert [one.revoked_by for one in ring.keys] == ["", "bob"]


def test_first_key_must_be_able_to_create_others() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    keys = ApiKeys(MemoryStore(), clock=lambda: now)
    for request in (
        KeyRequest("ci", (Scope.DEPLOY,)),
        KeyRequest("ci", (Scope.ADMIN,), ("team-*",)),
    ):
        with pytest.raises(InvalidInputError, match="without an active key that can create and revoke keys"):
            keys.create(request, actor="ada")
    with pytest.raises(InvalidInputError, match="is in the past"):
        keys.create(KeyRequest("old", (Scope.ADMIN,), expires_at=now), actor="ada")
    keys.create(KeyRequest("root", (Scope.ADMIN,), expires_at=now + timedelta(days=1)), actor="ada")
    keys.create(KeyRequest("ci", (Scope.DEPLOY,)), actor="ada")
    now += timedelta(days=2)  # the only admin key is over: offline, another one can be made
    keys.create(KeyRequest("root", (Scope.ADMIN,)), actor="ada")
