"""The list of models with two thousand of them."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from benchmarks.scale import fill, name_of
from controlplane.storage.filesystem import FilesystemStore
from tests.support.api import Api, serving, settings_for
from tests.ui.conftest import OpenPage

COUNT = 2000
MOST_ROWS = 60
"""Rows that the list may have in the document: those in view, and some above and below."""

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API with many idle deployments, without a Triton."""
    folder = tmp_path_factory.mktemp("many")
    settings = settings_for(folder, embedded=False)
    store = FilesystemStore(folder / "store")
    fill(store, folder, COUNT)
    store.close()
    with serving(settings) as running:
        yield running


@pytest.mark.slow
def test_list_draws_and_asks_for_the_rows_in_view_alone(many: Api, open_page: OpenPage) -> None:
    asked: list[str] = []
    page = open_page(many.url)
    page.on("request", lambda request: asked.append(request.url))
    table = page.get_by_role("table", name="Models")
    expect(table).to_have_attribute("aria-rowcount", str(COUNT + 1))
    rows = table.get_by_role("row")
    assert rows.count() < MOST_ROWS
    page.get_by_role("searchbox").fill(name_of(1999))
    expect(table).to_have_attribute("aria-rowcount", "2")
    expect(page.get_by_role("link", name=name_of(1999))).to_be_visible()
    page.get_by_role("searchbox").fill("")
    table.locator(".vbody").evaluate("element => element.scrollTo(0, element.scrollHeight)")
    expect(page.get_by_role("link", name=name_of(1999))).to_be_visible()
    assert rows.count() < MOST_ROWS
    metrics = {url for url in asked if "/metrics" in url}
    assert len(metrics) < 3 * MOST_ROWS, "the page asks for metrics of models out of view"
