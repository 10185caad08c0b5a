"""Views for those who operate the fleet: cordon and drain, keys, audit, explanations."""

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Page, expect

from controlplane.settings import TritonServerSettings, TritonSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.keys import guarded_api
from tests.support.triton import running_triton
from tests.ui.conftest import NARROW, WIDE, OpenPage, check_accessible, check_fits

pytestmark = pytest.mark.triton

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Two Tritons; `free` may run on both, `bound` on a alone."""
    folder = tmp_path_factory.mktemp("operate")
    with ExitStack() as stack:
        servers = tuple(
            TritonServerSettings(
                name=name, grpc_url=one.server.grpc_url, http_url=one.server.http_url, repository=one.server.repository,
                labels={"name": name},
            )
            for name, one in ((name, stack.enter_context(running_triton(folder / name))) for name in "ab")
        )  # fmt: skip
        settings = settings_for(
            folder / "plane", embedded=False, triton=TritonSettings(servers=servers, load_timeout_seconds=60)
        )
        api = stack.enter_context(serving(settings))
        api.publish("free", onnx_scale(2.0))
        api.publish("bound", onnx_scale(3.0))
        assert api.deploy("bound:1", node_selector={"name": "a"})["state"] == "succeeded"
        assert api.deploy("free:1")["state"] == "succeeded"
        yield api


def card(page: Page, server: str):
    return page.get_by_role("article").filter(has=page.get_by_role("heading", name=server, exact=True))


def test_server_is_drained_and_uncordoned_by_clicks(pair: Api, open_page: OpenPage) -> None:
    page = open_page(pair.url, "#/fleet")
    expect(card(page, "a")).to_contain_text("bound:1")
    card(page, "a").get_by_role("button", name="Cordon", exact=True).click()
    page.get_by_role("dialog", name="Cordon a").get_by_role("button", name="Cordon").click()
    expect(card(page, "a")).to_contain_text("Cordoned")

    card(page, "a").get_by_role("button", name="Drain").click()
    dialog = page.get_by_role("dialog", name="Drain a")
    plan = dialog.get_by_role("list", name="Plan")
    expect(plan).to_contain_text("bound stays")
    dialog.get_by_label("Reason").fill("new driver")
    check_accessible(page)
    dialog.get_by_role("button", name="Drain", exact=True).click()
    expect(card(page, "a")).to_contain_text("Draining new driver")
    expect(card(page, "a").get_by_role("list", name="Left on the server")).to_contain_text("bound stays: no suitable")
    check_accessible(page)

    card(page, "a").get_by_role("button", name="Drain").click()
    dialog.get_by_label("Also unload models that no other server can have").check()
    expect(plan).to_contain_text("bound is unloaded")
    dialog.get_by_role("button", name="Drain", exact=True).click()
    expect(card(page, "a")).to_contain_text("Drained")
    expect(card(page, "a").get_by_role("link", name="bound:1")).to_have_count(0)

    card(page, "a").get_by_role("button", name="Uncordon").click()
    page.get_by_role("dialog", name="Uncordon a").get_by_role("button", name="Uncordon").click()
    expect(card(page, "a").get_by_role("link", name="bound:1")).to_be_visible()
    expect(card(page, "a")).not_to_contain_text("Drained")


def test_changes_and_reasons_are_in_the_audit_view_and_explanation(pair: Api, open_page: OpenPage) -> None:
    pair.ok(pair.http.put("/v1/models/free/aliases/champion", json={"version": 1, "reason": "<b>chosen</b>"}))
    for size, scheme in ((WIDE, "light"), (NARROW, "dark")):
        page = open_page(pair.url, "#/audit", size=size, scheme=scheme)
        page.get_by_role("searchbox", name="Search the audit log").fill("chosen")
        expect(page.get_by_text("<b>chosen</b>")).to_be_visible()
        check_accessible(page)
        check_fits(page)
        page = open_page(pair.url, "#/models/bound/explain", size=size, scheme=scheme)
        expect(page.get_by_role("list", name="Assignments")).to_contain_text("a")
        expect(page.get_by_role("heading", name="b", exact=True)).to_be_visible()
        check_accessible(page)
        check_fits(page)


def test_key_is_created_shown_once_and_revoked_by_clicks(
    tmp_path_factory: pytest.TempPathFactory, open_page: OpenPage
) -> None:
    with guarded_api(settings_for(tmp_path_factory.mktemp("keys"), embedded=False)) as api:
        code = api.ok(api.http.post("/v1/session/codes"))["code"]
        page = open_page(api.url, f"#/sign-in/{code}")
        page.get_by_role("link", name="Keys").click()
        page.get_by_role("button", name="Create a key").click()
        dialog = page.get_by_role("dialog", name="Create an API key")
        dialog.get_by_label("Name of its owner").fill("team a")
        dialog.get_by_role("button", name="Create").click()
        expect(dialog.get_by_role("alert")).to_contain_text("team a")
        dialog.get_by_label("Name of its owner").fill("team-a")
        dialog.get_by_role("checkbox", name=re.compile("^infer")).check()
        dialog.get_by_role("textbox", name=re.compile("^Models")).fill("team-a-*")
        check_accessible(page)
        dialog.get_by_role("button", name="Create").click()
        shown = page.get_by_role("dialog", name="The key team-a").locator("pre")
        expect(shown).to_contain_text("tck_")
        secret = shown.inner_text()
        assert api.http.get("/v1/info", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        page.get_by_role("button", name="Done").click()
        expect(page.get_by_role("table")).to_contain_text("read, inferteam-a-*")
        assert secret not in page.content()
        check_accessible(page)
        page.get_by_role("button", name="Revoke team-a").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke", exact=True).click()
        expect(page.get_by_role("row").filter(has_text="team-a")).to_contain_text("revoked")
        assert api.http.get("/v1/info", headers={"Authorization": f"Bearer {secret}"}).status_code == 401
        page.context.close()
        open_page.said.clear()  # type: ignore[attr-defined]  # the browser reports the refused name
