"""Counts what the activator does: for Prometheus and for who asks. Plain numbers; the API gives them their names."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from controlplane.domain.states import DeploymentStatus

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histograms' buckets."""


@dataclass
class Histogram:
    """A histogram over `SECONDS`, with one more bucket for what is longer."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class RequestLabels(NamedTuple):
    """How a request went.

    Attributes:
        model: A model that is deployed; others are counted together.
        way: activator, or what a rollout made of it: canary, shadow (also the copy), by-version.
        version: Which version was asked; empty where none was.
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
    """What happened since the start.

    Attributes:
        requests: Requests that came by the activator, and copies of them.
        waits: Requests that waited for a load, by model and outcome: loaded, failed, late, refused, gone.
        wait_seconds: How long they waited, by outcome.
        stage_seconds: Time of loads that somebody waited for, by stage.
    """

    requests: Counter[RequestLabels] = field(default_factory=Counter)
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    wait_seconds: dict[str, Histogram] = field(default_factory=dict)
    stage_seconds: dict[str, Histogram] = field(default_factory=dict)

    def answered(self, kind: RequestLabels) -> None:
        """A request was answered."""
        self.requests[kind] += 1

    def waited(self, model: str, outcome: str, seconds: float) -> None:
        """A request's wait ended."""
        self.waits[model, outcome] += 1
        self.wait_seconds.setdefault(outcome, Histogram()).observe(seconds)

    def started(self, before: DeploymentStatus | None, after: DeploymentStatus | None) -> None:
        """A model that was waited for can be asked: what its load took on each server, by stage."""
        spent = {server.server: server.seconds for server in before.servers} if before else {}
        for server in after.servers if after else ():
            for stage, seconds in server.seconds.items():
                # A deployment's seconds add up over its loads.
                took = seconds - spent.get(server.server, {}).get(stage, 0.0)
                if took > 0:
                    self.stage_seconds.setdefault(stage, Histogram()).observe(took)
