"""The control plane's own `/metrics`, the rules and the dashboards: read by the real promtool and a real Prometheus."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.api import Api

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
_NAME = re.compile(r"\b(?:[a-z]+:)?(tritonctl_[a-z0-9_]+)(?::[a-z0-9]+)?\b")
_RECORDED = re.compile(r"\b[a-z]+:tritonctl_[a-z0-9_]+:[a-z0-9]+\b")
_UNCALLED = {"tritonctl_server_gpu_utilisation"}
"""What only a machine with a GPU tells."""


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed (Debian's package prometheus)")
        pytest.skip(f"{name} is not installed (Debian's package prometheus)")
    return found


def promtool(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        [program("promtool"), *arguments],
        cwd=PROMETHEUS,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.prometheus
def test_configuration_and_rules_are_valid() -> None:
    # The key is a secret of the compose file's container, so only the syntax can be checked.
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", "prometheus.yml")
    assert "17 rules found" in promtool("check", "rules", "rules.yml")
    promtool("test", "rules", "rules_test.yml")


def test_every_alert_has_a_unit_test() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", (PROMETHEUS / "rules.yml").read_text()))
    tested = set(re.findall(r"alertname: (\w+)", (PROMETHEUS / "rules_test.yml").read_text()))
    assert alerts == tested


def test_dashboards_match_their_code() -> None:
    spec = importlib.util.spec_from_file_location("dashboards", GRAFANA / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    written = {path.name: path.read_text() for path in (GRAFANA / "dashboards").glob("*.json")}
    assert written == {name: code.text(one) for name, one in code.dashboards().items()}
    for text in written.values():
        ids = [panel["id"] for panel in json.loads(text)["panels"]]
        assert len(ids) == len(set(ids)) > 10


@pytest.fixture(scope="module")
def page(watched: Api) -> str:
    """The real `/metrics`, after some traffic and with objectives."""
    watched.deploy("net:1", bake_seconds=0, objectives={"p99_milliseconds": 1000, "failure_percent": 5})
    for _ in range(5):
        watched.infer("net", [1.0, 2.0])
    end = time.monotonic() + 60
    while True:
        text = watched.http.get("/metrics").text
        if all(name in text for name in ("tritonctl_model_latency_seconds{", "tritonctl_objective_burn_rate{")):
            return text
        assert time.monotonic() < end, text
        time.sleep(0.1)


@pytest.mark.triton
@pytest.mark.prometheus
def test_promtool_accepts_our_metrics(page: str) -> None:
    promtool("check", "metrics", stdin=page)


@pytest.mark.triton
def test_rules_and_dashboards_use_only_existing_metrics(page: str) -> None:
    samples = {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}
    families = {family.name for family in text_string_to_metric_families(page)}
    rules = (PROMETHEUS / "rules.yml").read_text()
    recorded = set(re.findall(r"record: (\S+)", rules))
    parts = re.findall(r"expr: (.*?)\n      (?=-|\Z|  \w+:)", rules, re.S)
    expressions = {f"rule {number}": part for number, part in enumerate(parts)}
    for path in (GRAFANA / "dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expressions[f"{path.name}, {panel['title']}, {target['refId']}"] = target["expr"]
    assert len(expressions) > 40
    for where, expression in expressions.items():
        assert set(_RECORDED.findall(expression)) <= recorded, where
        for name in _NAME.findall(_RECORDED.sub("", expression)):
            assert name in samples or name in _UNCALLED & families, f"{where}: {name} is not told"


@pytest.mark.triton
def test_number_of_labels_is_bounded(watched: Api, page: str) -> None:
    for number in range(50):  # what clients make up is in no label
        watched.http.get(f"/v1/deployments/undeployed-{number}/metrics")
    text = watched.http.get("/metrics").text
    assert "undeployed-" not in text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    models = {sample.labels["model"] for sample in samples if "model" in sample.labels}
    deployed = {one["model"] for one in watched.ok(watched.http.get("/v1/deployments"))["items"]}
    assert "net" in models <= deployed


@pytest.fixture
def prometheus(watched: Api, tmp_path: Path) -> Iterator[httpx.Client]:
    """A real Prometheus that scrapes the control plane and evaluates our rules, every second."""
    server = program("prometheus")
    config = (PROMETHEUS / "prometheus.yml").read_text()
    (servers,) = watched.ok(watched.http.get("/v1/servers"))["items"]
    triton = httpx.URL(servers["metrics_url"])
    key = tmp_path / "key"
    key.write_text("none is asked for")
    config = config.replace("/run/secrets/prometheus.key", str(key))
    config = config.replace("controlplane:8090", watched.url.removeprefix("http://"))
    config = config.replace("triton:8002", f"{triton.host}:{triton.port}").replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path / "rules.yml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                server,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def _until(what: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while True:
        try:
            if found := what():
                return found
        except (httpx.TransportError, json.JSONDecodeError):
            pass  # it is only starting, and says so in plain text
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.2)


@pytest.mark.triton
@pytest.mark.prometheus
@pytest.mark.long
def test_a_real_prometheus_scrapes_us_and_evaluates_the_rules(
    watched: Api, page: str, prometheus: httpx.Client
) -> None:
    def query(expression: str) -> list[dict[str, Any]]:
        answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def targets() -> bool:
        found = prometheus.get("/api/v1/targets").json()["data"]["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in found} == {"tritonctl": "up", "triton": "up"}

    _until(targets)

    def counted() -> bool:
        watched.infer("net", [1.0, 2.0])
        ours = query('sum(tritonctl_model_requests_total{model="net"})')
        rate = query('model:tritonctl_requests:rate5m{model="net"}')
        return bool(ours and rate) and float(rate[0]["value"][1]) > 0

    _until(counted)
    # What we tell of Triton's counters is what Triton tells itself, but for what it did before we watched it.
    ours = float(query('sum(tritonctl_model_requests_total{model="net"})')[0]["value"][1])
    assert ours > 5
    # Every panel's query is one that Prometheus takes, with the dashboard's variables filled in as Grafana does.
    asked = 0
    for path in (GRAFANA / "dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$model", "net").replace("$__rate_interval", "1m")
                answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
                assert answer["status"] == "success", f"{path.name}, {panel['title']}: {answer}"
                labels = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
                for one in answer["data"]["result"]:
                    assert labels <= one["metric"].keys(), f"{path.name}, {panel['title']}: {one['metric']}"
                asked += 1
    assert asked > 20
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 17
    assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
    alerts = prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
    assert [one["labels"]["alertname"] for one in alerts if one["state"] == "firing"] == []
