"""The dashboards as code: ``python deploy/grafana/dashboards.py`` writes ``dashboards/*.json``."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_OF = '{model=~"$model"}'

Panel = tuple[str, str, list[tuple[str, str]]]
"""Title, unit, and queries with their legends."""

MODELS: list[Panel] = [
    ("Requests", "reqps", [(f"model:tritonctl_requests:rate5m{_OF}", "{{model}}")]),
    ("Failed requests", "percentunit", [(f"model:tritonctl_failure_ratio:rate5m{_OF}", "{{model}}")]),
    (
        "Failures by reason",
        "reqps",
        [(f"sum by (model, reason) (rate(tritonctl_model_failures_total{_OF}[5m])) > 0", "{{model}} {{reason}}")],
    ),
    (
        "99th percentile, of Triton's summaries",
        "s",
        [
            (
                'max by (model, version) (tritonctl_model_latency_seconds{model=~"$model",percentile="99"})',
                "{{model}}:{{version}}",
            )
        ],
    ),
    (
        "Mean time: request, queue",
        "s",
        [
            (f"model:tritonctl_request_seconds:mean5m{_OF}", "{{model}}"),
            (f"model:tritonctl_queue_seconds:mean5m{_OF}", "{{model}}, in the queue"),
        ],
    ),
    ("Pending requests", "none", [(f"sum by (model) (tritonctl_model_pending_requests{_OF})", "{{model}}")]),
    ("Batch achieved", "none", [(f"model:tritonctl_batch_size:mean5m{_OF}", "{{model}}")]),
    (
        "Inferences by version",
        "ops",
        [(f"sum by (model, version) (rate(tritonctl_model_inferences_total{_OF}[5m]))", "{{model}}:{{version}}")],
    ),
    (
        "Processor cores",
        "none",
        [(f"sum by (model) (rate(tritonctl_model_cpu_seconds_total{_OF}[5m]))", "{{model}}")],
    ),
    (
        "Burn rate of objectives",
        "none",
        [
            (
                f"max by (model, objective, window_seconds) (tritonctl_objective_burn_rate{_OF})",
                "{{model}} {{objective}}, {{window_seconds}} s",
            )
        ],
    ),
    ("Memory", "bytes", [(f"sum by (model) (tritonctl_model_memory_bytes{_OF})", "{{model}}")]),
    ("Version that answers", "none", [(f"tritonctl_serving_version{_OF}", "{{model}} on {{server}}")]),
]

CONTROL_PLANE: list[Panel] = [
    ("Deployments by phase", "none", [("sum by (phase) (tritonctl_deployments)", "{{phase}}")]),
    ("Deployments that lag", "s", [("max by (model) (tritonctl_deployment_lag_seconds) > 0", "{{model}}")]),
    ("Servers", "none", [("tritonctl_server_up", "{{server}}"), ("tritonctl_leader", "leads: {{instance}}")]),
    (
        "Loop: time for a message, 99th percentile",
        "s",
        [
            (
                "histogram_quantile(0.99, sum by (le, message) (rate(tritonctl_reconcile_seconds_bucket[5m])))",
                "{{message}}",
            )
        ],
    ),
    (
        "Queues",
        "none",
        [
            ("tritonctl_reconcile_queue_length", "loop"),
            ("tritonctl_loads_queued", "loads on {{server}}"),
            ("tritonctl_webhooks_waiting", "webhooks"),
            ("tritonctl_operations_running", "operations"),
        ],
    ),
    ("Age of the newest look", "s", [("tritonctl_server_observed_age_seconds", "{{server}}")]),
    (
        "Store: 99th percentile",
        "s",
        [
            (
                "histogram_quantile(0.99, sum by (le, operation) (rate(tritonctl_store_seconds_bucket[5m])))",
                "{{operation}}",
            )
        ],
    ),
    (
        "Store: errors",
        "ops",
        [
            (
                "sum by (operation, outcome) "
                '(rate(tritonctl_store_operations_total{outcome!~"ok|exists|missing"}[5m]))',
                "{{operation}} {{outcome}}",
            )
        ],
    ),
    (
        "API: requests",
        "reqps",
        [
            (
                "sum by (method, route, status) (rate(tritonctl_http_requests_total[5m]))",
                "{{method}} {{route}} {{status}}",
            )
        ],
    ),
    (
        "API: 99th percentile",
        "s",
        [
            (
                "histogram_quantile(0.99, sum by (le, route) (rate(tritonctl_http_request_seconds_bucket[5m])))",
                "{{route}}",
            )
        ],
    ),
    (
        "Memory of the devices",
        "bytes",
        [("sum by (server, device, state) (tritonctl_memory_bytes)", "{{server}} {{device}} {{state}}")],
    ),
    (
        "Processors",
        "percentunit",
        [
            ("tritonctl_server_cpu_utilisation", "{{server}} CPU"),
            ("tritonctl_server_gpu_utilisation", "{{server}} {{gpu}}"),
        ],
    ),
    (
        "Looks at Triton's metrics",
        "ops",
        [("sum by (server, result) (rate(tritonctl_triton_scrapes_total[5m]))", "{{server}} {{result}}")],
    ),
    ("Memory of the windows", "bytes", [("tritonctl_window_bytes", "{{server}}")]),
    ("Webhooks", "none", [("sum by (outcome) (increase(tritonctl_webhooks_total[1h]))", "{{outcome}}")]),
]


def dashboards() -> dict[str, dict[str, Any]]:
    """Return each dashboard by the name of its file."""
    return {
        "models.json": _dashboard("tritonctl-models", "Models", MODELS, of_models=True),
        "control-plane.json": _dashboard("tritonctl-control-plane", "Control plane", CONTROL_PLANE, of_models=False),
    }


def text(dashboard: dict[str, Any]) -> str:
    """Return a dashboard as it is written."""
    return json.dumps(dashboard, indent=1) + "\n"


def _dashboard(uid: str, title: str, panels: list[Panel], *, of_models: bool) -> dict[str, Any]:
    variables: list[dict[str, Any]] = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    if of_models:
        query = "label_values(tritonctl_model_requests_total, model)"
        variables.append(
            {
                "name": "model",
                "type": "query",
                "datasource": _SOURCE,
                "query": {"query": query, "refId": "model"},
                "refresh": 2,
                "multi": True,
                "includeAll": True,
                "current": {"text": "All", "value": "$__all"},
            }
        )
    return {
        "uid": uid,
        "title": f"tritonctl: {title}",
        "tags": ["tritonctl"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    title, unit, queries = panel
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": row * _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(queries)
        ],
    }


if __name__ == "__main__":
    for name, one in dashboards().items():
        (FOLDER / name).write_text(text(one), encoding="utf-8")
