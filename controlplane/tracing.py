"""Traces: what a request led to, as spans of OpenTelemetry. Off unless the settings name a collector.

The only place that imports OpenTelemetry, and only once it is turned on (``pip install 'triton-control-plane[otel]'``).
While it is off, a span is one comparison and an empty context.

A deployment is written down by a request and acted on by the reconciler, later and in other tasks: `carry` keeps the
request's context for a model until `done`. It is kept in this process; where another instance leads, the trace ends
with the commit.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from controlplane.errors import InvalidInputError

_CARRIED_MAX = 1000


class Span(Protocol):
    """What can be done to a span that is open."""

    def update_name(self, name: str) -> None:
        """Give it a name that is known only by now."""
        ...

    def set_attribute(self, key: str, value: str | float) -> None:
        """Add a fact."""
        ...


class _NoSpan:
    def update_name(self, name: str) -> None:
        """Do nothing."""

    def set_attribute(self, key: str, value: str | float) -> None:
        """Do nothing."""


class _Traces:
    """What is turned on in this process; nothing by default."""

    def __init__(self) -> None:
        self.tracer: Any = None
        self.propagator: Any = None
        self.inside: Callable[[], bool] = lambda: False
        self.carried: OrderedDict[str, str] = OrderedDict()


_traces = _Traces()
_OFF: AbstractContextManager[Span] = nullcontext(_NoSpan())


def turn_on(endpoint: str = "", *, exporter: Any = None) -> Callable[[], None]:
    """Begin to trace; return what ends it and sends what is left.

    Args:
        endpoint: Where an OTLP collector takes traces over HTTP, such as ``http://127.0.0.1:4318/v1/traces``.
        exporter: An OpenTelemetry span exporter to use in its place.

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
    """Open a span below the one that is open in this context, or below a parent from elsewhere.

    Args:
        name: What is done.
        parent: W3C ``traceparent``; empty: the context's.
        attributes: Facts.
    """
    return _OFF if _traces.tracer is None else _span(name, parent, attributes)


def carry(model: str) -> None:
    """Keep this context for what the reconciler will do about a model; it takes the place of what was kept before."""
    if _traces.tracer is None:
        return
    carrier: dict[str, str] = {}
    _traces.propagator.inject(carrier)
    _traces.carried.pop(model, None)
    if "traceparent" in carrier:
        _traces.carried[model] = carrier["traceparent"]
    if len(_traces.carried) > _CARRIED_MAX:
        _traces.carried.popitem(last=False)


def carried(model: str) -> str:
    """Return the context that is kept for a model; empty where there is none."""
    return _traces.carried.get(model, "")


def done(model: str) -> None:
    """What is done about a model from now on has nothing to do with the request any more."""
    _traces.carried.pop(model, None)


def below(name: str, *, parent: str = "", **attributes: str | float) -> AbstractContextManager[Span]:
    """Open a span where one is open already, or a parent is given; else nothing: work that nobody asked for has none.

    Args:
        name: What is done.
        parent: As for `span`.
        attributes: Facts.
    """
    if _traces.tracer is None or not (parent or _traces.inside()):
        return _OFF
    return _span(name, parent, attributes)


@contextmanager
def _span(name: str, parent: str, attributes: dict[str, str | float]) -> Iterator[Span]:
    context = _traces.propagator.extract({"traceparent": parent}) if parent else None
    with _traces.tracer.start_as_current_span(name, context=context, attributes=attributes) as opened:
        yield opened
