"""What people do on the page besides looking: publish, try, roll out."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from controlplane.domain.samples import Sample, encode_samples
from tests.support.api import Api, onnx_scale, settings_for
from tests.support.keys import guarded_api, made
from tests.ui.conftest import NARROW, OpenPage, check_accessible, check_fits, keep_screenshot

pytestmark = pytest.mark.triton

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API that requires keys, without a Triton."""
    with guarded_api(settings_for(tmp_path_factory.mktemp("guarded"), embedded=False)) as running:
        yield running


def test_file_is_published_tried_and_rolled_out(api: Api, open_page: OpenPage, tmp_path: Path) -> None:
    file = tmp_path / "double.onnx"
    file.write_bytes(onnx_scale(2.0))
    page = open_page(api.url, "#/publish")
    check_accessible(page)
    page.get_by_label("Model file").set_input_files(file)
    expect(page.get_by_label("Model name")).to_have_value("double")
    page.get_by_label("Alias (optional)").fill("champion")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_text("Published double:1")).to_be_visible()
    assert api.ok(api.http.get("/v1/models/double"))["aliases"] == {"champion": 1}

    api.deploy("double:1")
    page.goto(f"{api.url}/ui/#/models/double/try")
    page.get_by_label(re.compile("^x FP32")).fill("[[1, 2], [3, 4]]")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("[[2,4],[6,8]]")).to_be_visible()
    expect(page.get_by_text(re.compile("Version 1 on embedded answered in"))).to_be_visible()
    page.get_by_role("button", name="Sample 1").click()
    expect(page.get_by_label(re.compile("^x FP32"))).not_to_have_value("[[1, 2], [3, 4]]")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("y FP32[")).to_be_visible()
    check_accessible(page)
    keep_screenshot(page, "try")
    page.get_by_label(re.compile("^x FP32")).fill("[[1, 2]")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("The input x is not JSON")

    api.publish("double", onnx_scale(3.0))
    page.get_by_role("button", name="Deploy", exact=True).click()
    page.get_by_label("Strategy").select_option("manual")
    page.get_by_role("button", name="Deploy version 2").click()
    page.get_by_role("link", name="Rollout", exact=True).click()
    expect(page.get_by_role("heading", name="manual: version 1 → 2")).to_be_visible()
    check_accessible(page)
    keep_screenshot(page, "rollout")
    page.get_by_role("button", name="Promote").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("good enough")
    page.get_by_role("dialog").get_by_role("button", name="Promote").click()
    expect(page.get_by_text("promoted", exact=True)).to_be_visible()
    expect(page.get_by_text("version 2 answers").first).to_be_visible()
    assert api.infer("double", [1.0, 2.0]) == ([3.0, 6.0], 2)


def test_file_that_is_no_model_is_explained(api: Api, open_page: OpenPage, tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(onnx_scale(2.0)[:40])
    page = open_page(api.url, "#/publish", size=NARROW)
    page.get_by_label("Model file").set_input_files(file)
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("ONNX")
    check_accessible(page)
    check_fits(page)


def test_folder_is_published_with_its_paths(api: Api, open_page: OpenPage, tmp_path: Path) -> None:
    folder = tmp_path / "from_folder"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(onnx_scale(2.0))
    (folder / "config.pbtxt").write_text('backend: "onnxruntime"\nmax_batch_size: 4\n')
    page = open_page(api.url, "#/publish")
    page.get_by_label("Model folder").set_input_files(folder)
    expect(page.get_by_label("Model name")).to_have_value("from_folder")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_text("Published from_folder:1")).to_be_visible()
    files = api.ok(api.http.get("/v1/models/from_folder/versions/1"))["manifest"]["files"]
    assert {one["path"] for one in files} == {"1/model.onnx", "config.pbtxt"}


def test_samples_of_every_type_are_read(api: Api, open_page: OpenPage) -> None:
    arrays: dict[str, Any] = {
        "half": np.array([[0.5, -2.0]], np.float16),
        "double": np.array([[1.25]], np.float64),
        "long": np.array([[-3, 2**40]], np.int64),
        "byte": np.array([[7]], np.uint8),
        "flag": np.array([[True, False]]),
        "text": np.array([["a ü", ""]], object),
    }
    data = encode_samples((Sample(arrays, {"y": np.zeros((1, 2, 2), np.float32)}),))
    page = open_page(api.url)
    found = page.evaluate(
        """async (bytes) => {
            const { readSamples } = await import("/ui/js/npz.js");
            return readSamples(Uint8Array.from(bytes).buffer);
        }""",
        list(data),
    )
    assert found == [
        {"inputs": {name: array.tolist() for name, array in arrays.items()}, "outputs": {"y": [[[0, 0], [0, 0]]]}}
    ]


def test_key_that_may_only_read_is_offered_no_changes(guarded: Api, open_page: OpenPage) -> None:
    secret, _ = made(guarded, guarded.http, "looker", "read")
    page = open_page(guarded.url)
    page.get_by_label("API key").fill(secret)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("link", name="Models")).to_be_visible()
    expect(page.get_by_role("link", name="Publish")).to_have_count(0)
    page.goto(f"{guarded.url}/ui/#/publish")
    expect(page.get_by_text("Publishing needs a key with the scope deploy.")).to_be_visible()
