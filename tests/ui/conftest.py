"""Real Chromium on the real page."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.support.api import Api, serving, settings_for

CHROMIUM = "chromium"
WIDE, NARROW = (1280, 800), (390, 800)
PATIENCE_MS = 60_000
"""How long a test waits for what it expects on the screen."""
SCREENSHOTS = Path(__file__).parents[2] / "docs" / "images"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system, without a window."""
    program = shutil.which(CHROMIUM)
    if program is None:
        reason = "Chromium is not installed (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root, as whom CI runs; the page comes from this process alone.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens the page in a browser without cookies. At the end nothing may be in the console."""
    said: list[str] = []
    contexts = []

    def listen(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            said.append(f"{message.text} ({message.location.get('url')})")

    def opener(url: str, fragment: str = "", *, size: tuple[int, int] = WIDE, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", listen)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{url}/ui/{fragment}")
        return page

    opener.said = said  # type: ignore[attr-defined]
    yield opener
    for context in contexts:
        context.close()
    assert not said, "the browser's console has messages"


def check_accessible(page: Page) -> None:
    """Raise AssertionError if axe finds a violation of WCAG 2.1 A or AA in what is shown."""
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}})
    assert found.violations_count == 0, found.generate_report()


def check_fits(page: Page) -> None:
    """Raise AssertionError if the page is wider than its window."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"


def keep_screenshot(page: Page, name: str) -> None:
    """Write a screenshot into ``docs/images``, if ``SCREENSHOTS=1`` asks for new ones."""
    if os.environ.get("SCREENSHOTS"):
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=str(SCREENSHOTS / f"{name}.png"))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application with an embedded Triton. Mark what uses it with ``triton``."""
    with serving(settings_for(tmp_path_factory.mktemp("ui"), embedded=True)) as running:
        yield running
