"""Counts what the activator does, for Prometheus and the API. Plain numbers; the API names the metrics."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from controlplane.domain.states import DeploymentStatus

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histograms' buckets."""


@dataclass
class Histogram:
    """A histogram over `SECONDS`, with one more bucket for longer durations."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class RequestLabels(NamedTuple):
    """The labels under which a request is counted.

    Attributes:
        model: A deployed model; requests for other models are counted together.
        way: activator, or how a rollout handled the request: canary, shadow (also the copy), by-version.
        version: The version that received the request; empty if none did.
        protocol: http, grpc or grpc-stream.
        code: An HTTP status or a gRPC code.
    """

    model: str
    way: str
    version: str
    protocol: str
    code: str


@dataclass
class GatewayStats:
    """Counters since the start of the process.

    Attributes:
        requests: Requests that came through the activator, and copies of them.
        waits: Requests that waited for a load, by model and outcome: loaded, failed, late, refused, gone.
        wait_seconds: How long they waited, by outcome.
        stage_seconds: Duration of loads for which requests waited, by stage.
    """

    requests: Counter[RequestLabels] = field(default_factory=Counter)
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    wait_seconds: dict[str, Histogram] = field(default_factory=dict)
    stage_seconds: dict[str, Histogram] = field(default_factory=dict)

    def answered(self, kind: RequestLabels) -> None:
        """Count a request that was answered."""
        self.requests[kind] += 1

    def waited(self, model: str, outcome: str, seconds: float) -> None:
        """Count a request whose wait ended."""
        self.waits[model, outcome] += 1
        self.wait_seconds.setdefault(outcome, Histogram()).observe(seconds)

    def started(self, before: DeploymentStatus | None, after: DeploymentStatus | None) -> None:
        """Record the duration of a load for which requests waited, on each server and by stage."""
        spent = {server.server: server.seconds for server in before.servers} if before else {}
        for server in after.servers if after else ():
            for stage, seconds in server.seconds.items():
                # A deployment's seconds accumulate over its loads.
                took = seconds - spent.get(server.server, {}).get(stage, 0.0)
                if took > 0:
                    self.stage_seconds.setdefault(stage, Histogram()).observe(took)
