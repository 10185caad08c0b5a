"""Traces of requests and the work they cause, as OpenTelemetry spans. Off unless the settings name a collector.

This is the only module that imports OpenTelemetry, and only when tracing is turned on
(``pip install 'triton-control-plane[otel]'``). While tracing is off, a span costs one comparison and an empty context.

A request commits a deployment, and the reconciler acts on it later and in other tasks: `carry` keeps the request's
context for a model until `done`. It is kept in this process; if another instance is the leader, the trace ends with the
commit.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from controlplane.errors import InvalidInputError

_CARRIED_MAX = 1000


class Span(Protocol):
    """The operations of an open span."""

    def update_name(self, name: str) -> None:
        """Change the name, for a name that is known only after the start."""
        ...

    def set_attribute(self, key: str, value: str | float) -> None:
        """Set an attribute."""
        ...


class _NoSpan:
    def update_name(self, name: str) -> None:
        """Do nothing."""

    def set_attribute(self, key: str, value: str | float) -> None:
        """Do nothing."""


class _Traces:
    """The tracing state of this process; off by default."""

    def __init__(self) -> None:
        self.tracer: Any = None
        self.propagator: Any = None
        self.inside: Callable[[], bool] = lambda: False
        self.carried: OrderedDict[str, str] = OrderedDict()


_traces = _Traces()
_OFF: AbstractContextManager[Span] = nullcontext(_NoSpan())


def turn_on(endpoint: str = "", *, exporter: Any = None) -> Callable[[], None]:
    """Turn tracing on; return a function that turns it off and sends the remaining spans.

    Args:
        endpoint: URL at which an OTLP collector accepts traces over HTTP, such as ``http://127.0.0.1:4318/v1/traces``.
        exporter: An OpenTelemetry span exporter to use instead.

    Raises:
        InvalidInputError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(endpoint=endpoint)
    except ImportError as error:
        raise InvalidInputError(
            f"traces need OpenTelemetry ({error}); install it: pip install 'triton-control-plane[otel]', or unset "
            "CONTROLPLANE_TRACING__OTLP_ENDPOINT"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "tritonctl"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _traces.tracer = provider.get_tracer("controlplane")
    _traces.propagator = TraceContextTextMapPropagator()
    _traces.inside = lambda: get_current_span().get_span_context().is_valid

    def turn_off() -> None:
        _traces.tracer = _traces.propagator = None
        _traces.carried.clear()
        provider.shutdown()

    return turn_off


def span(name: str, *, parent: str = "", **attributes: str | float) -> AbstractContextManager[Span]:
    """Open a span as a child of the span in this context, or of a given parent.

    Args:
        name: The name of the operation.
        parent: W3C ``traceparent``; empty for the span of this context.
        attributes: The attributes of the span.
    """
    return _OFF if _traces.tracer is None else _span(name, parent, attributes)


def current() -> str:
    """Return the W3C ``traceparent`` of this context; empty if no span is open or tracing is off."""
    if _traces.tracer is None:
        return ""
    carrier: dict[str, str] = {}
    _traces.propagator.inject(carrier)
    return carrier.get("traceparent", "")


def carry(model: str) -> None:
    """Keep this context for the reconciler's work on a model; it replaces the context that was kept before."""
    if _traces.tracer is None:
        return
    _traces.carried.pop(model, None)
    if parent := current():
        _traces.carried[model] = parent
    if len(_traces.carried) > _CARRIED_MAX:
        _traces.carried.popitem(last=False)


def carried(model: str) -> str:
    """Return the context that is kept for a model; empty if there is none."""
    return _traces.carried.get(model, "")


def done(model: str) -> None:
    """Drop the context of a model: later work on it is no longer part of the request."""
    _traces.carried.pop(model, None)


def below(name: str, *, parent: str = "", **attributes: str | float) -> AbstractContextManager[Span]:
    """Open a span if one is already open or a parent is given: work without a request has no spans.

    Args:
        name: The name of the operation.
        parent: See `span`.
        attributes: The attributes of the span.
    """
    if _traces.tracer is None or not (parent or _traces.inside()):
        return _OFF
    return _span(name, parent, attributes)


@contextmanager
def _span(name: str, parent: str, attributes: dict[str, str | float]) -> Iterator[Span]:
    context = _traces.propagator.extract({"traceparent": parent}) if parent else None
    with _traces.tracer.start_as_current_span(name, context=context, attributes=attributes) as opened:
        yield opened
