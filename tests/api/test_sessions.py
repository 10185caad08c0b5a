"""Sessions of browsers, and the files of the page, over the real API."""

import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from controlplane.api import sse
from controlplane.api.page import FOLDER
from tests.support.api import Api, settings_for
from tests.support.keys import guarded_api, made


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API that requires keys; its client is an administrator's."""
    with guarded_api(settings_for(tmp_path_factory.mktemp("sessions"), embedded=False)) as api:
        yield api


@pytest.fixture
def browser(guarded: Api) -> Iterator[httpx.Client]:
    """A client without a key that keeps cookies."""
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        yield client


def sign_in(api: Api, browser: httpx.Client, name: str, *scopes: str) -> tuple[str, dict[str, str]]:
    """Open a session with a new key; return the key's secret and the header for changes."""
    secret, holder = made(api, api.http, name, *scopes)
    holder.close()
    answer = api.ok(browser.post("/v1/session", json={"api_key": secret}))
    assert answer["signed_in"]
    return secret, {"X-CSRF-Token": answer["csrf_token"]}


def test_session_acts_for_the_key_that_it_was_opened_with(guarded: Api, browser: httpx.Client) -> None:
    secret, token = sign_in(guarded, browser, "ada", "deploy")
    cookie = next(iter(browser.cookies.jar))
    assert cookie.name == f"controlplane_session_{browser.base_url.port}"
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "strict"
    assert secret not in str(cookie.value)
    assert guarded.ok(browser.get("/v1/session"))["name"] == "ada"
    guarded.ok(browser.get("/v1/models"))
    guarded.ok(browser.put("/v1/models/seen", json={}, headers=token), 201)
    assert guarded.ok(browser.get("/v1/models/seen/history"))["items"][0]["actor"] == "ada"
    guarded.problem(browser.get("/v1/keys"), 403, "forbidden")


def test_change_without_the_csrf_token_is_refused(guarded: Api, browser: httpx.Client) -> None:
    _, token = sign_in(guarded, browser, "bob", "deploy")
    guarded.problem(browser.put("/v1/models/forged", json={}), 403, "forbidden")
    guarded.problem(browser.put("/v1/models/forged", json={}, headers={"X-CSRF-Token": "guess"}), 403, "forbidden")
    guarded.problem(browser.delete("/v1/session"), 403, "forbidden")
    guarded.problem(guarded.http.get("/v1/models/forged"), 404, "not-found")
    guarded.ok(browser.put("/v1/models/meant", json={}, headers=token), 201)


def test_session_ends_with_its_key_and_with_sign_out(guarded: Api, browser: httpx.Client) -> None:
    _, token = sign_in(guarded, browser, "cleo", "read")
    kept = dict(browser.cookies)
    assert browser.delete("/v1/session", headers=token).status_code == 204
    browser.cookies.update(kept)
    guarded.problem(browser.get("/v1/models"), 401, "unauthenticated")

    sign_in(guarded, browser, "dora", "read")
    guarded.ok(browser.get("/v1/models"))
    guarded.ok(guarded.http.delete("/v1/keys/dora"))
    guarded.problem(browser.get("/v1/models"), 401, "unauthenticated")
    assert not guarded.ok(browser.get("/v1/session"))["signed_in"]


def test_event_stream_ends_with_its_key(guarded: Api, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.1)
    sign_in(guarded, browser, "edda", "read")
    with browser.stream("GET", "/v1/events?follow=true") as events:
        assert events.status_code == 200
        lines = events.iter_lines()
        assert sum(1 for line in itertools.islice(lines, 6) if line) >= 3
        guarded.ok(guarded.http.delete("/v1/keys/edda"))
        for _ in lines:  # what was on its way; without the check this never ends
            pass
    guarded.problem(browser.get("/v1/events?follow=true"), 401, "unauthenticated")


def test_cookie_is_secure_if_the_page_is_encrypted(guarded: Api, browser: httpx.Client) -> None:
    secret, holder = made(guarded, guarded.http, "finn", "read")
    holder.close()
    for origin, secure in ((str(browser.base_url), False), ("https://models.example.org", True)):
        answer = browser.post("/v1/session", json={"api_key": secret}, headers={"Origin": origin})
        assert ("; secure" in answer.headers["set-cookie"].lower()) is secure


def test_sign_in_code_works_once(guarded: Api, browser: httpx.Client) -> None:
    code = guarded.ok(guarded.http.post("/v1/session/codes"))["code"]
    assert guarded.ok(browser.post("/v1/session", json={"code": code}))["name"] == "root"
    problem = guarded.problem(browser.post("/v1/session", json={"code": code}), 401, "unauthenticated")
    assert "tritonctl ui" in problem["detail"]
    # Only a key makes codes: a session could otherwise outlive its twelve hours by them.
    guarded.problem(browser.post("/v1/session/codes"), 403, "forbidden")


def test_unusable_sign_ins_are_refused(guarded: Api, browser: httpx.Client) -> None:
    guarded.problem(browser.post("/v1/session", json={"api_key": "tck_wrong"}), 401, "unauthenticated")
    guarded.problem(browser.post("/v1/session", json={}), 422, "invalid-input")
    guarded.problem(browser.post("/v1/session", json={"api_key": "a", "code": "b"}), 422, "invalid-input")
    browser.cookies.set(f"controlplane_session_{browser.base_url.port}", "invented")
    guarded.problem(browser.get("/v1/models"), 401, "unauthenticated")


def test_other_site_cannot_sign_a_browser_in(guarded: Api, browser: httpx.Client) -> None:
    code = guarded.ok(guarded.http.post("/v1/session/codes"))["code"]
    answer = browser.post("/v1/session", json={"code": code}, headers={"Sec-Fetch-Site": "cross-site"})
    guarded.problem(answer, 403, "forbidden")
    assert not browser.cookies


def test_guesses_are_limited(tmp_path: Path) -> None:
    with (
        guarded_api(settings_for(tmp_path, embedded=False)) as api,
        httpx.Client(base_url=api.url, timeout=60) as guesser,
    ):
        answers = [guesser.post("/v1/session", json={"code": f"guess-{n}"}).status_code for n in range(30)]
        assert answers[0] == 401
        assert 429 in answers


def test_files_of_the_page_need_no_key_and_run_no_foreign_code(guarded: Api, browser: httpx.Client) -> None:
    for path in ("/", "/ui"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["location"]) == (307, "/ui/")
    index = browser.get("/ui/")
    policy = index.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=", index.text), "inline code, which the policy forbids"
    for file in ("app.css", "js/main.js", "vendor/preact.js"):
        answer = browser.get(f"/ui/{file}")
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == policy
    for outside in ("/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/..%2fapp.py"):
        assert browser.get(outside).status_code in {401, 404}
    guarded.problem(browser.post("/ui/"), 401, "unauthenticated")


def test_vendored_libraries_have_the_recorded_digests() -> None:
    vendor = FOLDER / "vendor"
    rows = re.findall(r"\| `([\w.-]+)` \|.*\| `([0-9a-f]{64})` \|", (vendor / "README.md").read_text())
    assert {name for name, _ in rows} == {path.name for path in vendor.glob("*.js")}
    for name, digest in rows:
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name
