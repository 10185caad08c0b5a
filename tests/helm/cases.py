"""Values that the chart is rendered with, by name."""

from typing import Any

CONTROL_KEY = {"controlKey": {"existingSecret": "triton-control"}}
STORE: dict[str, Any] = {"store": {"url": "s3://models/prod"}, "triton": CONTROL_KEY}
GIB = 1024**3
_PARENTS = [{"name": "public", "namespace": "networking"}]
_PEER = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
_EGRESS = [
    {"ports": [{"port": 53, "protocol": "UDP"}]},
    {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"port": 443}]},
]
_PLACES: dict[str, Any] = {
    "nodeSelector": {"node.kubernetes.io/pool": "system"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "noisy"}}}
            ]
        }
    },
    "priorityClassName": "high",
    "podLabels": {"team": "ml"},
    "podAnnotations": {"example.org/note": "kept"},
}

CASES: dict[str, dict[str, Any]] = {
    "defaults": STORE,
    "credentials": {
        "store": {
            "url": "s3://models",
            "endpointUrl": "https://s3.example.org:8333",
            "region": "eu-central-1",
            "existingSecret": "bucket",
            "secretKeys": {"accessKeyId": "id", "secretAccessKey": "secret"},
            "caConfigMap": {"name": "s3-ca", "key": "ca.pem"},
        },
        "gateway": {"existingSecret": "bucket-gateway"},
        "triton": {"controlKey": {"existingSecret": "triton-control", "key": "token"}},
        "imagePullSecrets": [{"name": "registry"}],
    },
    "service-accounts": {
        **STORE,
        "server": {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/plane"}}},
        "gateway": {"serviceAccount": {"create": False, "name": "made-elsewhere"}},
    },
    "mig": {
        **STORE,
        "server": {
            "runtimeClassName": "nvidia",
            "podDisruptionBudget": {"enabled": True},
            "volume": {"persistent": True, "storageClassName": "local-nvme", "size": "500Gi", "cacheBytes": 400 * GIB},
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
        "triton": {
            **CONTROL_KEY,
            "gpu": {"resource": "nvidia.com/mig-1g.10gb", "count": 1, "uuids": ["MIG-5c89852c"]},
            "labels": {"gpu": "h100", "tier": "gold"},
            "hostBudgetBytes": 24 * GIB,
            "exitSeconds": 600,
            "extraArgs": ["--log-verbose=1"],
        },
    },
    "cpu": {**STORE, "triton": {**CONTROL_KEY, "gpu": {"count": 0}}},
    "routes": {
        **STORE,
        "controlplane": {
            "ingress": {"enabled": True, "className": "nginx", "host": "api.example.org", "tlsSecret": "api-tls"},
            "httpRoute": {"enabled": True, "parentRefs": _PARENTS, "hostnames": ["api.example.org"]},
        },
        "gateway": {
            "ingress": {"enabled": True, "host": "models.example.org", "annotations": {"example.org/body": "1g"}},
            "httpRoute": {"enabled": True, "parentRefs": _PARENTS, "timeouts": {"request": "600s"}},
            "grpcRoute": {"enabled": True, "parentRefs": _PARENTS, "hostnames": ["grpc.example.org"]},
        },
    },
    "tls": {
        **STORE,
        "controlplane": {"tls": {"existingSecret": "api-tls"}},
        "gateway": {"tls": {"existingSecret": "gateway-tls"}},
        "monitoring": {"serviceMonitor": {"enabled": True, "tlsConfig": {"serverName": "api.example.org"}}},
    },
    "monitoring": {
        **STORE,
        "monitoring": {
            "labels": {"release": "kube-prometheus-stack"},
            "serviceMonitor": {"enabled": True, "interval": "30s", "keySecret": {"name": "metrics-key"}},
            "prometheusRule": {"enabled": True},
            "dashboards": {"enabled": True},
        },
        "networkPolicy": {
            "api": _PEER,
            "clients": _PEER,
            "monitoring": _PEER,
            "egress": {"enabled": True, "rules": _EGRESS},
        },
    },
    "workers": {
        **STORE,
        "workers": {
            "replicas": 3,
            "agentKey": {"existingSecret": "agents"},
            "existingSecret": "bucket-agents",
            "drainSeconds": 120,
            "zone": "eu-1",
            "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/agent"}},
            **_PLACES,
        },
        "networkPolicy": {"egress": {"enabled": True, "rules": _EGRESS}, "monitoring": _PEER},
    },
    "autoscaled-workers": {**STORE, "workers": {"autoscaled": True, "agentKey": {"existingSecret": "agents"}}},
    "small": {
        **STORE,
        "fullnameOverride": "small",
        "gateway": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
    "placed": {
        **STORE,
        "image": {"repository": "registry.example.org/tritonctl", "digest": f"sha256:{'a' * 64}"},
        "config": {"log_format": "text", "memory": {"gpu_budget_fraction": 0.8, "headroom_bytes": 1073741824}},
        "server": _PLACES,
        "controlplane": {"image": {"repository": "registry.example.org/tritonctl-convert"}},
        "gateway": {
            **_PLACES,
            "autoscaling": {"enabled": True},
            "service": {"type": "LoadBalancer", "annotations": {"example.org/lb": "internal"}},
            "extraEnv": [{"name": "CONTROLPLANE_GATEWAY__THREADS", "value": "4"}],
        },
        "triton": {**CONTROL_KEY, "image": {"digest": f"sha256:{'b' * 64}"}},
    },
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no bucket": ({"triton": CONTROL_KEY}, "store.url"),
    "no control key": ({"store": STORE["store"]}, "triton.controlKey.existingSecret"),
    "workers without a key": ({**STORE, "workers": {"replicas": 1}}, "workers.agentKey.existingSecret"),
    "a folder": ({**STORE, "store": {"url": "file:///data"}}, "/store/url"),
    "a misspelt name": ({**STORE, "gatway": {}}, "gatway"),
    "a misspelt name in a group": ({**STORE, "triton": {**CONTROL_KEY, "gpus": 1}}, "gpus"),
    "a GPU that is no resource": (
        {**STORE, "triton": {**CONTROL_KEY, "gpu": {"resource": "a100"}}},
        "/triton/gpu/resource",
    ),
    "a digest without its algorithm": ({**STORE, "image": {"digest": "0123"}}, "/image/digest"),
    "an Ingress without a host": ({**STORE, "gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.host"),
    "a route without a parent": (
        {**STORE, "gateway": {"grpcRoute": {"enabled": True}}},
        "gateway.grpcRoute.parentRefs",
    ),
}
"""Values that the chart refuses, and what the error names."""
