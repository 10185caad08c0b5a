"""The page: a real browser, a real control plane, a real Triton."""

import os
import re
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.support.api import Api, onnx_scale, settings_for
from tests.support.keys import guarded_api, made
from tests.ui.conftest import NARROW, WIDE, OpenPage, check_accessible, check_fits, keep_screenshot

pytestmark = pytest.mark.triton

expect.set_options(timeout=60_000)


def row(page: Page, model: str):
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=model, exact=True))


def test_model_is_deployed_and_rolled_back_by_clicks(api: Api, open_page: OpenPage) -> None:
    page = open_page(api.url)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    for factor in (2.0, 3.0):
        api.publish("clicked", onnx_scale(factor))

    page.get_by_role("searchbox", name="Search models").fill("click")
    # The page was not loaded again: a publish is no event, but the newest list shows it.
    page.reload()
    page.get_by_role("searchbox", name="Search models").fill("click")
    expect(row(page, "clicked")).to_contain_text("Not deployed")
    row(page, "clicked").hover()
    row(page, "clicked").get_by_role("button", name="Deploy", exact=True).click()
    dialog = page.get_by_role("dialog", name="Deploy clicked")
    dialog.get_by_label("Version").select_option("1")
    expect(dialog.get_by_role("list", name="Plan")).to_contain_text("Fits into free memory")
    dialog.get_by_label("Reason").fill("first try")
    dialog.get_by_role("button", name="Deploy version 1").click()
    expect(dialog).to_be_hidden()
    expect(row(page, "clicked")).to_contain_text("Ready")
    assert api.infer("clicked", [1.0, 2.0]) == ([2.0, 4.0], 1)

    row(page, "clicked").get_by_role("link", name="clicked").click()
    page.get_by_role("button", name="Deploy", exact=True).click()
    page.get_by_role("button", name="Deploy version 2").click()
    expect(page.get_by_text("version 2 answers").first).to_be_visible()
    assert api.infer("clicked", [1.0, 2.0]) == ([3.0, 6.0], 2)

    page.get_by_role("button", name="Roll back", exact=True).click()
    dialog = page.get_by_role("dialog", name="Roll back clicked")
    expect(dialog.get_by_role("list", name="Plan")).to_be_visible()
    dialog.get_by_label("Reason").fill("worse")
    dialog.get_by_role("button", name="Roll back to version 1").click()
    expect(page.get_by_text(re.compile("version 1 answers")).first).to_be_visible()
    assert api.infer("clicked", [1.0, 2.0]) == ([2.0, 4.0], 1)

    page.get_by_role("link", name="History").click()
    expect(page.get_by_text("(clicked:1): worse")).to_be_visible()
    expect(page.get_by_text("first try", exact=True)).to_be_visible()


@pytest.fixture(scope="module")
def shown(api: Api) -> Api:
    """An API with a deployed model of two versions, and one that is not deployed."""
    for factor in (2.0, 3.0):
        api.publish("resnet", onnx_scale(factor))
        api.deploy("resnet")
    api.publish("bert", onnx_scale(5.0))
    return api


VIEWS = {
    "models": ("#/models", "resnet"),
    "model": ("#/models/resnet", "Deployment"),
    "versions": ("#/models/resnet/versions", "Golden samples"),
    "history": ("#/models/resnet/history", "Deployment revisions"),
    "proof": ("#/models/resnet/proof", "agrees"),
    "configuration": ("#/models/resnet/configuration", 'name: "resnet"'),
    "model-events": ("#/models/resnet/events", "ProofPassed"),
    "fleet": ("#/fleet", "Resident"),
    "events": ("#/events", "ProofPassed"),
    "api": ("#/api", "/v1/deployments/{model}/rollback"),
}


@pytest.mark.parametrize("view", VIEWS)
def test_view_is_accessible_and_fits_its_window(shown: Api, open_page: OpenPage, view: str) -> None:
    fragment, text = VIEWS[view]
    for size, scheme in ((WIDE, "light"), (NARROW, "dark")):
        page = open_page(shown.url, fragment, size=size, scheme=scheme)
        expect(page.get_by_text(text).first).to_be_attached()
        expect(page.get_by_text("Loading…")).to_have_count(0)
        check_accessible(page)
        check_fits(page)
        if view in {"models", "model", "fleet"} and scheme == "light":
            keep_screenshot(page, view)


def test_versions_are_compared(shown: Api, open_page: OpenPage) -> None:
    page = open_page(shown.url, "#/models/resnet/versions")
    table = page.get_by_role("table").nth(1)
    expect(table).to_contain_text("x FP32[?,2]")
    expect(table.locator("tr.differs")).to_contain_text(["Digest"])


def test_routes_are_described_without_the_internet(guarded: Api, open_page: OpenPage) -> None:
    page = open_page(guarded.url, "../docs")
    page.get_by_role("searchbox", name="Search routes").fill("rollback")
    page.get_by_text("/v1/deployments/{model}/rollback").click()
    expect(page.get_by_text("Needs an API key with the scope deploy")).to_be_visible()
    expect(page.get_by_text("The revision to roll back to")).to_be_visible()
    expect(page.get_by_text(f"curl -X POST '{guarded.url}/v1/deployments/{{model}}/rollback'")).to_be_visible()


def test_event_is_shown_without_a_reload(shown: Api, open_page: OpenPage) -> None:
    page = open_page(shown.url, "#/events")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.evaluate("window.notReloaded = true")
    shown.ok(shown.http.post("/v1/deployments/resnet/unload", json={"reason": "to see it"}), 202)
    expect(page.get_by_text("to see it")).to_be_visible()
    page.get_by_role("link", name="Models").click()
    expect(row(page, "resnet")).to_contain_text("Unloaded")
    row(page, "resnet").hover()
    row(page, "resnet").get_by_role("button", name="Load").click()
    page.get_by_role("dialog").get_by_role("button", name="Load").click()
    expect(row(page, "resnet")).to_contain_text("Ready")
    assert page.evaluate("window.notReloaded")


def test_server_that_dies_is_seen_and_so_is_its_return(shown: Api, open_page: OpenPage) -> None:
    page = open_page(shown.url, "#/fleet")
    server = page.get_by_role("article")
    expect(server).to_contain_text("Ready")
    triton = shown.plane.services.inference._servers[0].embedded
    assert triton is not None
    assert triton.pid is not None
    os.kill(triton.pid, signal.SIGKILL)
    expect(server).to_contain_text(re.compile("Unreachable|Starting|Stopped"))
    expect(server.get_by_role("link", name="resnet:2")).to_be_visible()
    expect(server.get_by_text("Ready", exact=True)).to_be_visible()


def test_text_of_a_model_is_never_run(shown: Api, open_page: OpenPage) -> None:
    hostile = '<img src=x onerror="window.hostile=1">'
    shown.ok(shown.http.post("/v1/deployments/resnet/unload", json={"reason": hostile}), 202)
    page = open_page(shown.url, "#/events")
    expect(page.get_by_text(hostile).first).to_be_visible()
    assert page.evaluate("window.hostile") is None
    shown.ok(shown.http.post("/v1/deployments/resnet/load?wait=60", json={}))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API that requires keys, without a Triton."""
    with guarded_api(settings_for(tmp_path_factory.mktemp("guarded"), embedded=False)) as running:
        running.publish("public", onnx_scale(2.0))
        running.publish("private", onnx_scale(3.0))
        yield running


def test_key_sees_and_is_offered_what_it_permits(guarded: Api, open_page: OpenPage) -> None:
    secret, _ = made(guarded, guarded.http, "reader", "read", models=["pub*"])
    page = open_page(guarded.url)
    check_accessible(page)
    page.get_by_label("API key").fill(secret)
    page.get_by_role("button", name="Sign in").click()
    expect(row(page, "public")).to_be_visible()
    expect(row(page, "private")).to_have_count(0)
    expect(page.get_by_role("button", name="Deploy", exact=True)).to_have_count(0)
    assert secret not in page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()


def test_session_that_ends_leads_to_the_sign_in(guarded: Api, open_page: OpenPage) -> None:
    code = guarded.ok(guarded.http.post("/v1/session/codes"))["code"]
    page = open_page(guarded.url, f"#/sign-in/{code}")
    expect(row(page, "private")).to_be_visible()
    assert code not in page.url
    guarded.plane.services.sessions._sessions.clear()  # as a restart does
    # Not a click on a row: a read that an event caused may have led to the sign-in already.
    page.evaluate("location.hash = '#/models/public'")
    expect(page.get_by_label("API key")).to_be_visible()
    open_page.said.clear()  # type: ignore[attr-defined]  # the browser reports each response with status 401


def test_wrong_key_is_explained(guarded: Api, open_page: OpenPage) -> None:
    page = open_page(guarded.url)
    page.get_by_label("API key").fill("tck_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("unknown API key")
    open_page.said.clear()  # type: ignore[attr-defined]
