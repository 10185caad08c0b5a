"""The page in Chromium: first paint, filter, and how soon an event is on the screen, with 2,000 idle deployments.

First paint is compared with the raw request for the same first rows, and the delay of an event with a bare reader of
the same event stream. A filter has no peer; its limit is 100 ms.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

from benchmarks.scale import fill, name_of
from controlplane.storage.filesystem import FilesystemStore
from tests.support.api import Api, serving, settings_for

RESULTS = Path(__file__).parent / "results"
FILTER_LIMIT_SECONDS = 0.1

_FIRST_PAINT = """() => new Promise((done) => {
    const look = () => document.querySelector(".vbody .vrow a") ? done(performance.now()) : requestAnimationFrame(look);
    look();
})"""
_FILTER = """(text) => new Promise((done) => {
    const input = document.querySelector("input[type=search]");
    const table = document.querySelector(".vtable");
    const began = performance.now();
    const setter = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set;
    setter.call(input, text);
    input.dispatchEvent(new Event("input", { bubbles: true }));
    const shown = () => (table.getAttribute("aria-rowcount") === "2") === Boolean(text);
    const look = () => shown() ? done(performance.now() - began) : requestAnimationFrame(look);
    requestAnimationFrame(look);
})"""
_EVENT_SEEN = """(text) => new Promise((done) => {
    const shown = () => document.querySelector(".vtable").textContent.includes(text);
    const look = () => shown() ? done(Date.now()) : requestAnimationFrame(look);
    look();
})"""


@dataclass(frozen=True)
class Row:
    """One measurement, medians over the repetitions.

    Attributes:
        what: What was measured.
        seconds: How long it took.
        peer: What it is compared with.
        peer_seconds: How long that took.
        ratio: `seconds` / `peer_seconds`.
    """

    what: str
    seconds: float
    peer: str
    peer_seconds: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.peer_seconds


def first_paint(page: Page, api: Api, repetitions: int) -> Row:
    seen, raw = [], []
    for _ in range(repetitions):
        began = time.perf_counter()
        api.ok(api.http.get("/v1/deployments", params={"limit": 100}))
        raw.append(time.perf_counter() - began)
        page.goto(f"{api.url}/ui/?{time.monotonic_ns()}#/models")
        seen.append(page.evaluate(_FIRST_PAINT) / 1000)
    return Row(
        "first rows painted", statistics.median(seen), "GET of the first 100 deployments", statistics.median(raw)
    )


def filtered(page: Page, count: int, repetitions: int) -> Row:
    page.locator(f".vtable[aria-rowcount='{count + 1}']").wait_for()
    seen = []
    for _ in range(repetitions):
        seen.append(page.evaluate(_FILTER, name_of(count - 1)) / 1000)
        page.evaluate(_FILTER, "")
    return Row(f"filter of {count} models", statistics.median(seen), "limit", FILTER_LIMIT_SECONDS)


def event_shown(page: Page, api: Api, repetitions: int) -> Row:
    page.goto(f"{api.url}/ui/#/events")
    page.get_by_text("Live", exact=True).wait_for()
    seen, bare = [], []
    for number in range(repetitions):
        text, heard = f"seen {number} {time.monotonic_ns()}", []
        reader = threading.Thread(target=_follow, args=(api.url, text, heard))
        reader.start()
        time.sleep(0.5)
        began = time.time()
        api.ok(api.http.post(f"/v1/deployments/{name_of(number)}/unload", json={"reason": text}), 202)
        seen.append(page.evaluate(_EVENT_SEEN, text) / 1000 - began)
        reader.join(30)
        bare.append(heard[0] - began)
    return Row("event on the screen", statistics.median(seen), "event at a bare reader", statistics.median(bare))


def _follow(url: str, text: str, heard: list[float]) -> None:
    with httpx.stream("GET", f"{url}/v1/events?follow=true", timeout=30) as answer:
        for line in answer.iter_lines():
            if text in line:
                heard.append(time.time())
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployments", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="page-") as name:
        folder = Path(name)
        store = FilesystemStore(folder / "store")
        fill(store, folder, arguments.deployments)
        store.close()
        with serving(settings_for(folder, embedded=False)) as api, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            rows = [
                first_paint(page, api, arguments.repetitions),
                filtered(page, arguments.deployments, arguments.repetitions),
                event_shown(page, api, arguments.repetitions),
            ]
            browser.close()
    for row in rows:
        print(
            f"{row.what:24} {row.seconds * 1000:8.1f} ms, {row.peer} {row.peer_seconds * 1000:.1f} ms: {row.ratio:.2f}"
        )
    RESULTS.mkdir(exist_ok=True)
    found = [{**asdict(row), "ratio": round(row.ratio, 3)} for row in rows]
    (RESULTS / "page.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
