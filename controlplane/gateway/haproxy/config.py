"""HAProxy's configuration, as text. Pure.

It relies on these facts of HAProxy 2.8, each of which has a test:

* A gRPC request begins with five bytes (a flag, a length) and the message, whose first field is the model's name in
  all v2 calls that name a model. The converter ``ungrpc`` needs the whole message in one buffer and finds nothing in a
  larger one; ``bytes(5),protobuf(1)`` reads the name from the first bytes of a message of any size.
* That name is the *first* one. Protobuf uses the last one, and HAProxy cannot read the end of a large message or the
  next message of a stream. So access is never granted by it: gRPC requests with a key that is bound to models go to the
  activator, which reads the whole message (`gateway.grpc_wire`), and so does every stream. If HAProxy sends a request
  to Triton itself (keys for all models), it compares the name in Triton's answer with the name that it read, and
  withholds the answer of another model.
* Over HTTP the path contains the name: a path in the map has no escapes, and goes to Triton unchanged.
* ``wait-for-body … at-least`` waits for as many bytes as a name can need, or for the end of a shorter body.
* A stick table counts requests, and those in flight, by backend, model and version: for metrics, and for drains.
* Text is searched up to the first zero byte, so a message is searched in hexadecimal.
* ``rand(n)`` returns a new number for each request, over both HTTP and gRPC.
* Relative paths are resolved from the folder given with ``-C``, so that no path is too long for a socket.
"""

import ipaddress
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controlplane.domain.names import MODEL_NAME_MAX
from controlplane.domain.rollout.sampling import PARTS
from controlplane.gateway.auth import ANY_CLIENT
from controlplane.gateway.haproxy.backends import Backend
from controlplane.gateway.haproxy.route_table import ALL, GRANTS, KEYS, MODELS, SPLITS, VERSIONS, Table
from controlplane.gateway.lost import LOST, NAMED_VERSION, UNKNOWN_MODEL
from controlplane.settings import GatewaySettings
from controlplane.triton.wire import HEAD_LENGTH

ADMIN_SOCKET = "admin.sock"
ACTIVATOR_HTTP = "activator-http.sock"
ACTIVATOR_GRPC = "activator-grpc.sock"
CLIENT_HEADER = "x-tritonctl-client"
"""Header with the client's address for the activator; a value that the client sends is overwritten."""
DRAWN_HEADER = "x-tritonctl-drawn"
"""Header with the sample size (per million) of a request that was drawn to be measured; clients cannot set it."""
PIN = "x-model-version"
"""Header, metadata key or request parameter that names the version that must answer."""
SERVICE = "/inference.GRPCInferenceService/"

_NAME_BYTES = 5 + 2 + 1 + MODEL_NAME_MAX
"""Bytes of a body that contain the whole name: gRPC's prefix, the field's tag, and its length of one or two bytes."""
_INFLIGHT_ENTRIES = 20_000
_AROUND = 24
"""Bytes of a key besides the model's name: backend, version and separators."""
_RATE_SECONDS = 10
"""Time over which the requests of a model with a rollout are counted, to decide whether all can be measured."""
_TRIED_ENTRIES = 2000
_SOURCES = 100_000
"""Addresses whose connections are counted; if there are more, the one idle for the longest time is removed."""
_HTTP_HEAD_BYTES = 16_384
"""Bytes of a body that are searched for the parameter that names a version, during a rollout."""
_GRPC_HEAD_BYTES = 4096
"""The same for gRPC, where parameters precede the tensors."""

_REFUSED_PATHS = "/v2/repository /v2/systemsharedmemory /v2/cudasharedmemory /v2/trace /v2/logging"
_V2_PATHS = (
    r"^/v2(/health/(live|ready)|/models/stats|/models/[^/]+(/versions/[0-9]+)?"
    r"(/(infer|generate|generate_stream|ready|config|stats))?)?$"
)
_REFUSAL = (
    "the gateway does not serve this path: shared memory, the model repository, tracing and logging are available "
    "only on the Triton server itself"
)
_UNATTENDED = "the control plane behind this gateway does not answer, so its routes may be out of date; try again"
_MISSES = 4
"""Number of checks of the control plane in the time that requests are served without it."""
ATTENDED_PATH = "/attended"
"""Path of HAProxy's check whether its routes are those of the control plane. No client can reach it."""
_OF_ANY_SERVER = ("ServerLive", "ServerReady")
_OF_ALL = "ServerMetadata"
_NAMED_IN_ANSWERS = ("ModelInfer", "ModelMetadata")
"""Calls whose answers begin with the name of the model that Triton executed."""
_DIRECT = (*_NAMED_IN_ANSWERS, "ModelReady")
"""Calls that HAProxy may send to Triton itself; the answer of the last one is only a yes or a no."""
_ACTIVATED = ("ModelConfig", "ModelStatistics", "ModelStreamInfer")
_MISNAMED = (
    "another model answered than the first one that the request names: a request must name its model once, before all "
    "other fields"
)


@dataclass(frozen=True, slots=True)
class Sockets:
    """File descriptors of HAProxy's listening sockets; it inherits them open, so that it never waits for a port."""

    http: int
    grpc: int
    metrics: int


def slots_for(servers: int, wanted: int) -> int:
    """Return how many slots for sets of several servers are useful: at most as many as there are such sets."""
    return min(wanted, (1 << min(servers, 20)) - 1 - min(servers, 20))


def render(settings: GatewaySettings, sockets: Sockets, backends: Sequence[Backend], table: Table) -> str:
    """Return the configuration with which HAProxy starts with this table."""
    answer = int(settings.request_timeout_seconds)
    tls = f" ssl crt {_quoted(settings.tls_certificate)} alpn h2,http/1.1" if settings.tls_certificate else ""
    tls_grpc = f" ssl crt {_quoted(settings.tls_certificate)} alpn h2" if settings.tls_certificate else " proto h2"
    all_measured = math.ceil(settings.max_sampled_requests_per_second * _RATE_SECONDS)
    sections = [
        f"""global
    stats socket unix@{ADMIN_SOCKET} mode 600 level admin
    maxconn {settings.max_connections}
    no strict-limits
    log stderr format raw daemon notice
    {f"nbthread {settings.threads}" if settings.threads else ""}
    # Large tensors: fewer turns of the event loop, and windows that do not make a client wait for each 64 KiB.
    tune.bufsize 65536
    tune.h2.fe.initial-window-size 1048576
    tune.h2.be.initial-window-size 1048576""",
        *(
            f"""defaults {protocol}
    mode http
    log global
    option dontlog-normal
    option abortonclose
    option redispatch 1
    option http-keep-alive
    option splice-auto
    retries 3
    retry-on conn-failure
    balance leastconn
    timeout connect 2s
    timeout http-request 10s
    timeout http-keep-alive 60s
    timeout client {answer}s
    timeout server {answer}s
    default-server init-addr last,libc,none pool-purge-delay 60s
    {errors}"""
            for protocol, errors in (("http", _http_errors()), ("grpc", _grpc_errors()))
        ),
        "defaults",  # HAProxy warns if a named defaults section is the last one before the proxies
        "resolvers system\n    parse-resolv-conf",
        f"""backend inflight from http
    stick-table type string len {MODEL_NAME_MAX + _AROUND} size {_INFLIGHT_ENTRIES} expire 24h \\
        store conn_cur,http_req_cnt,http_err_cnt,http_fail_cnt,gpc0""",
        f"""backend tried from http
    stick-table type string len {MODEL_NAME_MAX} size {_TRIED_ENTRIES} expire 60s \
        store http_req_rate({_RATE_SECONDS}s)""",
        f"""backend sources from http
    stick-table type ipv6 size {_SOURCES} expire 10m store conn_cur""",
        f"""frontend http from http
    bind fd@{sockets.http}{tls}
{_limit_sources(settings)}
    # A page of another site can make a browser on this machine send requests; no other client sends this header.
    http-request return status 403 content-type application/json \
        string '{{"error":"the request comes from a page of another site"}}' \
        if !METH_GET {{ req.hdr(sec-fetch-site) -m str cross-site same-site }}
    http-request return status 413 content-type application/json \\
        string '{{"error":"the body has more than {settings.max_request_bytes} bytes, the most that is taken"}}' \\
        if {{ req.body_size gt {settings.max_request_bytes} }}
    http-request return status 403 content-type application/json \\
        string '{{"error":"{_REFUSAL}"}}' \\
        if {{ path_beg {_REFUSED_PATHS} }} || {{ path -m reg ^/v2/models/[^/]+(/versions/[0-9]+)?/trace }}
    http-request return status 404 content-type application/json string '{{"error":"Not Found"}}' \\
        if !{{ path -m reg {_V2_PATHS} }}
    http-request set-var(txn.model) path,field(4,/) if {{ path_beg /v2/models/ }} !{{ path /v2/models/stats }}
    http-request return status 503 content-type application/json string '{{"error":"{_UNATTENDED}"}}' \
        if {{ nbsrv(control-plane) eq 0 }}
{_tried_http(all_measured)}
    # From here to the choice nothing waits: a model that leaves the map now is sent no request later.
    http-request set-var(txn.slot) var(txn.model),map({MODELS}) if {{ var(txn.model) -m found }}
{_choose("h", bound=True)}
    use_backend servers if {{ path_beg /v2/health/ }} {{ nbsrv(servers) gt 0 }}
    default_backend activator-http
    # See controlplane.gateway.lost.
    http-response wait-for-body time 1s at-least 512 if {{ status 404 }} {{ var(txn.key) -m found }}
    http-response return status 503 content-type application/json hdr Retry-After 1 string '{{"error":"{LOST}"}}' \\
        if {{ status 404 }} {{ var(txn.key) -m found }} {{ res.body -m sub "{UNKNOWN_MODEL}" }} \\
        !{{ res.body -m sub "{NAMED_VERSION}" }}""",
        f"""frontend grpc from grpc
    bind fd@{sockets.grpc}{tls_grpc}
{_limit_sources(settings)}
    http-request set-var(txn.call) path,field(3,/) if {{ path_beg {SERVICE} }}
    acl direct_call var(txn.call) -m str {" ".join(_DIRECT)}
    acl activated_call var(txn.call) -m str {" ".join(_ACTIVATED)}
    acl named_in_answer var(txn.call) -m str {" ".join(_NAMED_IN_ANSWERS)}
    acl of_any var(txn.call) -m str {" ".join(_OF_ANY_SERVER)}
    acl of_any path_beg /grpc.health.v1.Health/
    acl of_all var(txn.call) -m str {_OF_ALL}
    http-request return status 200 content-type application/grpc lf-string %[str()] hdr grpc-status 12 \\
        hdr grpc-message "{_REFUSAL}" \\
        if !direct_call !activated_call !of_any !of_all
    http-request return status 200 content-type application/grpc lf-string %[str()] hdr grpc-status 14 \\
        hdr grpc-message "{_UNATTENDED}" if {{ nbsrv(control-plane) eq 0 }}
    http-request wait-for-body time 30s at-least {_NAME_BYTES} if direct_call
    # The activator reads what is compressed (the first byte), or does not begin with the name (the sixth).
    acl plain req.body,bytes(0,1),hex -m str 00
    acl name_first req.body,bytes(5,1),hex -m str 0A
    http-request set-var(txn.model) req.body,bytes(5),protobuf(1) if direct_call plain name_first
{_tried_grpc(all_measured)}
    http-request set-var(txn.slot) var(txn.model),map({MODELS}) if {{ var(txn.model) -m found }}
{_choose("g", bound=False)}
    use_backend servers-grpc if of_any {{ nbsrv(servers-grpc) gt 0 }}
    default_backend activator-grpc
    http-response set-var(txn.lost) bool(true) if {{ res.hdr(grpc-status) -m str 5 }} {{ var(txn.key) -m found }} \\
        {{ res.hdr(grpc-message) -m sub "{UNKNOWN_MODEL}" }} !{{ res.hdr(grpc-message) -m sub "{NAMED_VERSION}" }}
    http-response sc-inc-gpc0(0) if {{ var(txn.lost) -m found }}
    http-response return status 200 content-type application/grpc lf-string %[str()] hdr grpc-status 14 \\
        hdr grpc-message "{LOST}" hdr retry-after 1 if {{ var(txn.lost) -m found }}
    # An error has no body, so there is nothing to compare.
    acl compared var(txn.compared) -m found
    acl misnamed var(txn.answered),strcmp(txn.model) lt 0
    acl misnamed var(txn.answered),strcmp(txn.model) gt 0
    http-response set-var(txn.compared) bool(true) if named_in_answer {{ var(txn.key) -m found }}
    http-response wait-for-body time {answer}s at-least {_NAME_BYTES} if compared
    http-response set-var(txn.answered) res.body,bytes(5),protobuf(1) if compared
    http-response sc-inc-gpc0(0) if misnamed
    http-response return status 200 content-type application/grpc lf-string %[str()] hdr grpc-status 3 \\
        hdr grpc-message "{_MISNAMED}" if misnamed
    http-response sc-inc-gpc0(0) if {{ var(txn.key) -m found }} {{ res.hdr(grpc-status) -m found }} \\
        !{{ res.hdr(grpc-status) -m str 0 }}""",
        f"""frontend metrics from http
    bind fd@{sockets.metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
    http-request return status 404""",
        f"""backend activator-http from http
    http-request set-header {CLIENT_HEADER} %[src]
    http-request del-header {DRAWN_HEADER}
    http-request set-header {DRAWN_HEADER} %[var(txn.drawn)] if {{ var(txn.drawn) -m found }}
    timeout server {answer + int(settings.load_timeout_seconds)}s
    server activator unix@{ACTIVATOR_HTTP}""",
        f"""backend activator-grpc from grpc
    http-request set-header {CLIENT_HEADER} %[src]
    http-request del-header {DRAWN_HEADER}
    http-request set-header {DRAWN_HEADER} %[var(txn.drawn)] if {{ var(txn.drawn) -m found }}
    timeout server {answer + int(settings.load_timeout_seconds)}s
    server activator unix@{ACTIVATOR_GRPC} proto h2""",
        f"""backend control-plane from http
    option httpchk GET {ATTENDED_PATH}
    server control-plane unix@{ACTIVATOR_HTTP} check \
        inter {int(settings.unattended_seconds * 1000 / _MISSES)}ms fall {_MISSES - 1} rise 1""",
        "backend servers from http\n    option httpchk GET /v2/health/live\n"
        + "\n".join(
            f"    server {one.key} {one.http} check inter 500ms fall 2 rise 1{_resolved(one.http)}"
            f"{' disabled' if one.spare else ''}"
            for one in backends
        ),
        "backend servers-grpc from grpc\n"
        + "\n".join(
            f"    server {one.key} {one.grpc} proto h2 track servers/{one.key}{_resolved(one.grpc)}" for one in backends
        ),
    ]
    for number, servers in enumerate(table.slots):
        for kind, protocol in (("h", "http"), ("g", "grpc")):
            sections.append(
                f"backend {kind}-{number} from {protocol}\n    http-request del-header authorization\n"
                + "\n".join(
                    f"    server {one.key} {one.http if kind == 'h' else one.grpc + ' proto h2'} "
                    f"track servers/{one.key}{_resolved(one.http if kind == 'h' else one.grpc)}"
                    f"{'' if one.key in servers else ' disabled'}"
                    for one in backends
                    if number >= table.fixed or one.key in servers
                )
            )
    # HAProxy's syntax has no line continuation.
    return re.sub(r" \\\n +", " ", "\n\n".join(sections)) + "\n"


def _limit_sources(settings: GatewaySettings) -> str:
    """Return rules that reject connections beyond one address's share, so that it cannot use all connections."""
    most = min(settings.max_connections_per_source, max(1, settings.max_connections // 2))
    return f"""    tcp-request connection track-sc2 src table sources
    tcp-request connection reject if {{ sc2_conn_cur gt {most} }}"""


def _choose(kind: str, *, bound: bool) -> str:
    """Return rules that send a request to its slot, unless no server of it is up or the request is to be measured.

    Such requests are counted under slot and model.

    Args:
        kind: First letter of the backends' names.
        bound: Whether requests with keys that are bound to models may go there too.
    """
    grants = f"http-request set-var(txn.granted) var(txn.who),concat(/,txn.model),map({GRANTS}) if known !granted"
    return f"""    http-request set-var(txn.back) str({kind}-),concat(,txn.slot) if {{ var(txn.slot) -m found }}
    acl served var(txn.back),nbsrv gt 0
    acl granted var(txn.granted) -m found
    http-request set-var(txn.who) str({ANY_CLIENT}),map({KEYS}) if {{ var(txn.slot) -m found }}
    acl known var(txn.who) -m found
    http-request set-var(txn.digest) req.fhdr(authorization),word(2,' '),sha2(256),hex,lower if !known \
        {{ req.fhdr_cnt(authorization) eq 1 }} {{ req.fhdr(authorization) -m beg -i "bearer " }}
    http-request set-var(txn.who) var(txn.digest),map({KEYS}) if !known {{ var(txn.digest) -m found }}
    http-request set-var(txn.granted) bool(true) if known {{ var(txn.who) -m str {ALL} }}
    {grants if bound else "# Keys that are bound to models are not in this map."}
    # Only of what would go directly: the activator draws for itself among what comes to it for other reasons.
    http-request set-var(txn.direct) bool(true) if {{ var(txn.slot) -m found }} granted served !aside
    acl direct var(txn.direct) -m found
    acl measured var(txn.parts) -m int gt 0
    http-request set-var(txn.drawn) int({PARTS}) if tried measured direct quiet
    http-request set-var(txn.drawn) var(txn.parts) if tried measured direct !quiet \
        {{ rand({PARTS}),sub(txn.parts) lt 0 }}
    http-request set-var(txn.version) var(txn.model),map({VERSIONS},-) if direct
    http-request set-var(txn.key) var(txn.back),concat(/,txn.model),concat(/,txn.version) \
        if direct !{{ var(txn.drawn) -m found }}
    http-request track-sc0 var(txn.key) table inflight if {{ var(txn.key) -m found }}
    use_backend %[var(txn.back)] if {{ var(txn.key) -m found }}"""


def _tried_http(most: int) -> str:
    """Return rules that detect a rollout, and a request that names a version or may name one out of view.

    Such a request goes to the activator. The JSON is at the start of a body, and the parameters may be at its end.
    """
    return f"""    http-request set-var(txn.parts) var(txn.model),map_str_int({SPLITS}) \
        if {{ path_end /infer }} {{ var(txn.model) -m found }}
    acl tried var(txn.parts) -m found
    acl aside var(txn.aside) -m found
    http-request track-sc1 var(txn.model) table tried if tried
    acl quiet sc1_http_req_rate(tried) lt {most}
    http-request wait-for-body time 30s at-least {_HTTP_HEAD_BYTES} if tried
    http-request set-var(txn.head) req.hdr_val(content-length) if tried
    http-request set-var(txn.head) req.hdr_val({HEAD_LENGTH}) if tried {{ req.hdr({HEAD_LENGTH}) -m found }}
    http-request set-var(txn.there) req.body_len if tried
    http-request set-var(txn.aside) bool(true) if tried {{ req.hdr({PIN}) -m found }}
    http-request set-var(txn.aside) bool(true) if tried {{ path,field(5,/) -m str versions }}
    http-request set-var(txn.aside) bool(true) if tried !{{ var(txn.head) -m found }}
    http-request set-var(txn.aside) bool(true) if tried !aside {{ var(txn.head),sub(txn.there) gt 0 }}
    http-request set-var(txn.aside) bool(true) if tried !aside {{ req.body -m sub {PIN} }}"""


def _tried_grpc(most: int) -> str:
    """Return rules that detect a rollout, and a gRPC request that names a version."""
    return f"""    http-request set-var(txn.parts) var(txn.model),map_str_int({SPLITS}) \
        if {{ var(txn.call) -m str ModelInfer }} {{ var(txn.model) -m found }}
    acl tried var(txn.parts) -m found
    acl aside var(txn.aside) -m found
    http-request track-sc1 var(txn.model) table tried if tried
    acl quiet sc1_http_req_rate(tried) lt {most}
    http-request wait-for-body time 30s at-least {_GRPC_HEAD_BYTES} if tried
    http-request set-var(txn.aside) bool(true) if tried {{ req.hdr({PIN}) -m found }}
    http-request set-var(txn.aside) bool(true) if tried {{ req.body,bytes(5),protobuf(2) -m found }}
    http-request set-var(txn.aside) bool(true) if tried !aside \
        {{ req.body,bytes(5,{_GRPC_HEAD_BYTES}),hex -m sub {PIN.encode().hex().upper()} }}"""


def _http_errors() -> str:
    words = {
        502: "the Triton server closed the connection",
        503: "no Triton server can be reached",
        504: "Triton gave no answer in time",
    }
    return "\n    ".join(
        f'http-error status {status} content-type application/json string \'{{"error":"{text}"}}\''
        for status, text in words.items()
    )


def _grpc_errors() -> str:
    words = {
        502: (14, "the Triton server closed the connection"),
        503: (14, "no Triton server can be reached"),
        504: (4, "Triton gave no answer in time"),
    }
    return "\n    ".join(
        f"http-error status {status} content-type application/grpc lf-string %[str()] "
        f'hdr grpc-status {code} hdr grpc-message "{text}"'
        for status, (code, text) in words.items()
    )


def _resolved(address: str) -> str:
    """Return the option that resolves a host name again when it changes; an IP address needs none."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return " resolvers system"
    return ""


def _quoted(path: Path | None) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"
