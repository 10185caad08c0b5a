"""The chart, rendered by the real helm: what it renders is valid for Kubernetes and safe, for a matrix of values."""

import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from tests.helm.cases import CASES, REFUSED, STORE
from tests.helm.cli import CHART, NAMESPACE, ROOT, HelmError, helm, render
from tests.helm.schemas import VERSIONS, faults

CUSTOM = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {"selector", "endpoints"},
    ("monitoring.coreos.com/v1", "PrometheusRule"): {"groups"},
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): {"parentRefs", "hostnames", "rules"},
    ("gateway.networking.k8s.io/v1", "GRPCRoute"): {"parentRefs", "hostnames", "rules"},
}
"""Custom resources, for which Kubernetes has no schemas, and the fields of their `spec` that the chart uses."""
WORKLOADS = {"Deployment", "StatefulSet"}


@cache
def rendered(case: str) -> list[dict[str, Any]]:
    return render(CASES[case])


def of_kind(case: str, *kinds: str) -> list[dict[str, Any]]:
    return [document for document in rendered(case) if document["kind"] in kinds]


def named(case: str, kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in of_kind(case, kind) if one["metadata"]["name"] == name]
    return found


def pods(case: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for workload in of_kind(case, *WORKLOADS):
        yield workload["metadata"]["name"], workload["spec"]["template"]


def containers(case: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield the name, the pod and the container of each container."""
    for workload, pod in pods(case):
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            yield f"{workload}/{container['name']}", pod["spec"], container


def running(case: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield those that run as long as the pod: `folders` only makes a folder."""
    return (one for one in containers(case) if one[2]["name"] != "folders")


def selects(selector: dict[str, str], pod: dict[str, Any]) -> bool:
    return selector.items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize("case", CASES)
def test_helm_accepts_the_chart(case: str) -> None:
    output = helm("lint", CHART, "--strict", values=CASES[case])
    assert "1 chart(s) linted, 0 chart(s) failed" in output


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_values_are_refused_with_their_names(case: str) -> None:
    values, name = REFUSED[case]
    with pytest.raises(HelmError, match=name):
        render(values)


@pytest.mark.parametrize("case", CASES)
def test_objects_are_valid_for_kubernetes(case: str) -> None:
    for document in rendered(case):
        assert document["metadata"]["namespace"] == NAMESPACE
        if (document["apiVersion"], document["kind"]) in CUSTOM:
            assert document["spec"].keys() <= CUSTOM[document["apiVersion"], document["kind"]]
        else:
            assert [fault for version in VERSIONS for fault in faults(version, document)] == []


def test_the_schemas_find_unknown_fields() -> None:
    document = json.loads(json.dumps(rendered("defaults")[-1]))
    document["spec"]["portss"] = []
    assert all(faults(version, document) for version in VERSIONS)


@pytest.mark.parametrize("case", CASES)
def test_names_are_unique(case: str) -> None:
    names = [(document["kind"], document["metadata"]["name"]) for document in rendered(case)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES)
def test_selectors_match_the_labels_of_pods(case: str) -> None:
    found = dict(pods(case))
    for workload in of_kind(case, *WORKLOADS):
        selector = workload["spec"]["selector"]["matchLabels"]
        assert [name for name, pod in found.items() if selects(selector, pod)] == [workload["metadata"]["name"]]
        spread = workload["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert all(one["labelSelector"]["matchLabels"] == selector for one in spread)
    for service in of_kind(case, "Service"):
        matched = [pod for pod in found.values() if selects(service["spec"]["selector"], pod)]
        assert matched, service["metadata"]["name"]
        for pod in matched:
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports_of(pod)
    for other in of_kind(case, "PodDisruptionBudget"):
        assert sum(selects(other["spec"]["selector"]["matchLabels"], pod) for pod in found.values()) == 1
    for monitor in of_kind(case, "ServiceMonitor"):
        (service,) = [
            one for one in of_kind(case, "Service") if selects(monitor["spec"]["selector"]["matchLabels"], one)
        ]
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    for policy in of_kind(case, "NetworkPolicy"):
        matched = [pod for pod in found.values() if selects(policy["spec"]["podSelector"]["matchLabels"], pod)]
        assert matched, policy["metadata"]["name"]
        opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert all(opened <= ports_of(pod) for pod in matched)


def ports_of(pod: dict[str, Any]) -> set[str]:
    known = (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
    return {port["name"] for container in known for port in container.get("ports", ())}


@pytest.mark.parametrize("case", CASES)
def test_containers_are_confined(case: str) -> None:
    for name, pod, container in containers(case):
        context = {**pod["securityContext"], **container["securityContext"]}
        assert context["runAsNonRoot"], name
        assert context["runAsUser"] > 0, name
        assert context["readOnlyRootFilesystem"], name
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & pod.keys(), name
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, name


@pytest.mark.parametrize("case", CASES)
def test_containers_have_probes_requests_and_limits(case: str) -> None:
    for name, _, container in running(case):
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys(), name
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in {port["name"] for port in container["ports"]}, name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        assert "memory" in container["resources"]["limits"], name


@pytest.mark.parametrize("case", CASES)
def test_no_volume_is_shared_between_pods(case: str) -> None:
    for name, pod in pods(case):
        for volume in pod["spec"]["volumes"]:
            assert volume.keys() - {"name"} <= {"emptyDir", "configMap", "secret"}, name
    for workload in of_kind(case, "StatefulSet"):
        for claim in workload["spec"].get("volumeClaimTemplates", ()):
            assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert of_kind(case, "PersistentVolumeClaim") == []


@pytest.mark.parametrize("case", CASES)
def test_secrets_are_references_and_reach_only_who_needs_them(case: str) -> None:
    assert of_kind(case, "Secret") == []
    for name, pod, container in running(case):
        for variable in container["env"]:
            if any(word in variable["name"] for word in ("SECRET", "PASSWORD", "ACCESS_KEY", "TOKEN")):
                assert variable["valueFrom"].keys() == {"secretKeyRef"}, f"{name}: {variable['name']}"
        if container["name"] != "triton":
            continue
        assert {variable["name"] for variable in container["env"]} == {"HOME", "CUDA_DEVICE_ORDER"}
        assert "envFrom" not in container
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert "/var/lib/tritonctl" not in mounts, "the folder has an admin key"
        assert mounts["/srv/triton"]["readOnly"]
        (plane,) = [other for other in pod["containers"] if other["name"] in {"controlplane", "agent"}]
        writable = {mount["name"] for mount in mounts.values() if not mount.get("readOnly")}
        assert not writable & {mount["name"] for mount in plane["volumeMounts"]}, (
            "Triton cannot change the files of others"
        )
        assert {key for mount in mounts.values() for key in volumes.get(mount["name"], {})} <= {
            "name", "emptyDir", "secret", "projected"
        }  # fmt: skip


def test_aws_role_of_the_control_plane_is_not_for_triton() -> None:
    pod = named("service-accounts", "StatefulSet", "prod-tritonctl-server")["spec"]["template"]
    assert pod["metadata"]["annotations"]["eks.amazonaws.com/skip-containers"] == "triton"
    (account,) = of_kind("service-accounts", "ServiceAccount")
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/plane"}
    assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    gateway = named("service-accounts", "Deployment", "prod-tritonctl-gateway")["spec"]["template"]
    assert gateway["spec"]["serviceAccountName"] == "made-elsewhere"


def test_credentials_come_from_the_secret_of_each_role() -> None:
    wanted = {"controlplane": "bucket", "gateway": "bucket-gateway"}
    seen = {}
    for _, _, container in containers("credentials"):
        env = {variable["name"]: variable for variable in container["env"]}
        if "AWS_SECRET_ACCESS_KEY" in env:
            reference = env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]
            assert reference["key"] == "secret"
            seen[container["name"]] = reference["name"]
            assert env["AWS_CA_BUNDLE"]["value"] == "/etc/tritonctl-ca/ca.pem"
    assert seen == wanted


@pytest.mark.parametrize("case", CASES)
def test_gateways_have_a_disruption_budget_and_are_replaced_one_by_one(case: str) -> None:
    budgets = [budget["spec"]["selector"]["matchLabels"] for budget in of_kind(case, "PodDisruptionBudget")]
    for workload in of_kind(case, "Deployment"):
        assert any(selects(one, workload["spec"]["template"]) for one in budgets), workload["metadata"]["name"]
        assert workload["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        scaled = [one["spec"]["scaleTargetRef"]["name"] for one in of_kind(case, "HorizontalPodAutoscaler")]
        assert ("replicas" in workload["spec"]) != (workload["metadata"]["name"] in scaled), (
            "one of them owns the number"
        )


@pytest.mark.parametrize("case", CASES)
def test_pods_that_stop_finish_their_requests(case: str) -> None:
    for name, pod, container in running(case):
        if container["name"] == "agent":
            (finishing,) = [
                float(one["value"]) for one in container["env"] if one["name"] == "CONTROLPLANE_AGENT__DRAIN_SECONDS"
            ]
            (sidecar,) = [one for one in pod["initContainers"] if one["name"] == "triton"]
            assert sidecar["restartPolicy"] == "Always", "Triton ends after the agent has moved the models"
        elif container["name"] == "triton":
            (option,) = [one for one in container["args"] if one.startswith("--exit-timeout-secs=")]
            finishing = float(option.partition("=")[2])
        else:
            hook = container["lifecycle"]["preStop"]["exec"]["command"]
            assert hook[0] == "sleep", "Services stop to send requests before the process stops to accept them"
            env = {variable["name"]: variable.get("value") for variable in container["env"]}
            finishing = float(hook[1]) + float(env.get("CONTROLPLANE_GATEWAY__SHUTDOWN_TIMEOUT_SECONDS") or 0)
        assert pod["terminationGracePeriodSeconds"] >= finishing + 5, name


@pytest.mark.parametrize(
    ("case", "devices"),
    [("defaults", {"nvidia.com/gpu": 1}), ("mig", {"nvidia.com/mig-1g.10gb": 1}), ("cpu", {})],
)
def test_gpus_are_a_limit_of_triton_alone(case: str, devices: dict[str, int]) -> None:
    limits = {container["name"]: container["resources"]["limits"] for _, _, container in containers(case)}
    assert {key: value for key, value in limits["triton"].items() if "/" in key} == devices
    assert not any("/" in key for name, one in limits.items() if name != "triton" for key in one)


def test_server_has_the_values_of_its_pod() -> None:
    server = named("mig", "StatefulSet", "prod-tritonctl-server")["spec"]
    pod = server["template"]["spec"]
    assert server["replicas"] == 1
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert pod["runtimeClassName"] == "nvidia"
    (triton,) = [container for container in pod["containers"] if container["name"] == "triton"]
    assert "--log-verbose=1" in triton["args"]
    (claim,) = server["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "local-nvme"
    assert claim["spec"]["resources"] == {"requests": {"storage": "500Gi"}}


def test_rules_and_dashboards_are_those_of_the_repository() -> None:
    (rule,) = of_kind("monitoring", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    boards = named("monitoring", "ConfigMap", "prod-tritonctl-dashboards")["data"]
    files = {f"tritonctl-{path.name}": path.read_text() for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
    assert files
    assert {name: json.loads(text) for name, text in boards.items()} == {n: json.loads(t) for n, t in files.items()}


def test_alerts_select_the_job_that_the_monitors_set() -> None:
    jobs = {
        relabeling["replacement"]
        for monitor in of_kind("monitoring", "ServiceMonitor")
        for endpoint in monitor["spec"]["endpoints"]
        for relabeling in endpoint["relabelings"]
    }
    assert jobs == {"tritonctl", "tritonctl-gateway", "triton"}
    rules = (ROOT / "deploy/prometheus/rules.yml").read_text()
    assert 'up{job="tritonctl"}' in rules


def test_packaged_chart_renders_the_same(tmp_path: Any) -> None:
    """Rules and dashboards are links in the chart's folder; a package has their contents."""
    helm("package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("*.tgz")
    shutil.unpack_archive(package, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert render(CASES["monitoring"], chart=package) == rendered("monitoring")


def test_images_are_named_by_digest_where_one_is_given() -> None:
    images = {container["name"]: container["image"] for _, _, container in containers("placed")}
    assert images["gateway"] == f"registry.example.org/tritonctl@sha256:{'a' * 64}"
    assert images["controlplane"] == f"registry.example.org/tritonctl-convert@sha256:{'a' * 64}"
    assert images["triton"] == f"nvcr.io/nvidia/tritonserver@sha256:{'b' * 64}"


def test_changed_settings_restart_the_pods() -> None:
    def sums(values: dict[str, Any]) -> set[str]:
        workloads = [one for one in render(values) if one["kind"] in WORKLOADS]
        return {one["spec"]["template"]["metadata"]["annotations"]["checksum/config"] for one in workloads}

    before, after = sums(STORE), sums({**STORE, "config": {"log_format": "text"}})
    assert len(before) == len(after) == 1
    assert before != after


def test_notes_name_objects_that_exist() -> None:
    """`helm install` prints them; with `--dry-run=client` it needs no cluster."""
    output = helm("install", "prod", CHART, "--namespace", NAMESPACE, "--dry-run=client", values=STORE)
    notes = output.partition("NOTES:")[2]
    names = {document["metadata"]["name"] for document in rendered("defaults")}
    assert "keys create root --scope admin --offline" in notes
    named_there = set(re.findall(r"prod-tritonctl-[a-z]+", notes))
    assert named_there == {"prod-tritonctl-server", "prod-tritonctl-controlplane", "prod-tritonctl-gateway"}
    assert named_there <= names
