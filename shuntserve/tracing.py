"""OpenTelemetry spans of a job's phases, engines and chunks, made from the events that are logged anyway.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set and the OpenTelemetry SDK is installed (it comes with vLLM). A span
begins with one event and ends with another of the same process; all spans of a job, of whichever process and machine,
are in one trace, whose id follows from the job's.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shuntserve import telemetry
from shuntserve.errors import InvalidInput
from shuntserve.telemetry import LOGGER, Event

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanProcessor

_MOST_OPEN = 10_000


@dataclass(frozen=True, slots=True)
class Kind:
    """A span's name, the events that end it, and the fields that tell two of its kind apart."""

    name: str
    ends: frozenset[Event]
    by: tuple[str, ...] = ()


SPANS: Mapping[Event, Kind] = {
    Event.INGEST_STARTED: Kind("ingest", frozenset({Event.INGEST_FINISHED})),
    Event.FINALIZE_STARTED: Kind("finalize", frozenset({Event.FINALIZE_FINISHED})),
    Event.WORKER_STARTED: Kind("worker", frozenset({Event.WORKER_EXITED, Event.WORKER_FENCED})),
    Event.ENGINE_STARTING: Kind("engine start", frozenset({Event.ENGINE_READY, Event.ENGINE_LOST})),
    Event.CHUNK_CLAIMED: Kind("chunk", frozenset({Event.CHUNK_COMMITTED, Event.CHUNK_RELEASED}), ("chunk", "epoch")),
    Event.AGENT_STARTED: Kind("agent", frozenset({Event.AGENT_EXITED})),
    Event.CONTROLLER_ACTING: Kind("controller", frozenset({Event.CONTROLLER_EXITED, Event.CONTROLLER_FENCED})),
}


class SpanHandler(logging.Handler):
    """Turns pairs of events into spans. `always`: fields of every span, `job` among them where it is known."""

    def __init__(self, processor: SpanProcessor, service: str, always: Mapping[str, object]) -> None:
        super().__init__()
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._always = {name: value for name, value in always.items() if value is not None}
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("shuntserve")
        self._open: dict[tuple[object, ...], Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        fields = {**self._always, **getattr(record, "fields", {})}
        event, at_ns = record.getMessage(), int(record.created * 1e9)
        kind = SPANS.get(event)  # type: ignore[call-overload] # an event is its text
        if kind is not None and len(self._open) < _MOST_OPEN:
            span = self._tracer.start_span(
                kind.name, _of_job(str(fields.get("job", ""))), attributes=_attributes(fields), start_time=at_ns
            )
            self._open[_key(kind, fields)] = span
            return
        for one in SPANS.values():
            if event in one.ends and (span := self._open.pop(_key(one, fields), None)) is not None:
                span.set_attributes({"shuntserve.ended_by": event, **_attributes(fields)})
                span.end(at_ns)

    def close(self) -> None:
        """End what is open and hand everything over; as long as that takes."""
        for span in self._open.values():
            span.end()
        self._open.clear()
        self._provider.shutdown()
        super().close()


def _key(kind: Kind, fields: Mapping[str, object]) -> tuple[object, ...]:
    return (kind.name, *(fields.get(name) for name in kind.by))


def _attributes(fields: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    return {
        f"shuntserve.{name}": value if isinstance(value, str | int | float) else str(value)
        for name, value in fields.items()
        if value is not None
    }


def _of_job(job_id: str) -> Any:
    """The context of the trace that all spans of a job share."""
    from opentelemetry import trace

    digest = hashlib.sha256(job_id.encode()).digest()
    parent = trace.SpanContext(
        trace_id=int.from_bytes(digest[:16], "big"),
        span_id=int.from_bytes(digest[16:24], "big"),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(parent))


@contextmanager
def traced(endpoint: str | None, protocol: str, service: str, **always: object) -> Iterator[None]:
    """While inside, this process's events also make spans, sent to `endpoint` (the exporter itself reads the standard
    variables; `protocol` is grpc or http/protobuf). Nothing happens when there is no endpoint; a missing SDK is logged.

    Enter it after `telemetry.log_to`. Events that the log level leaves out make no spans.
    """
    handler = None if endpoint is None else _handler(protocol, service, always)
    if handler is None:
        yield
        return
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()


def _handler(protocol: str, service: str, always: Mapping[str, object]) -> SpanHandler | None:
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(protocol)
    except ImportError as error:
        missing = InvalidInput("OTEL_EXPORTER_OTLP_ENDPOINT", f"needs {error.name}", "install opentelemetry-sdk")
        telemetry.emit(Event.TRACING_UNAVAILABLE, error=str(missing))
        return None
    return SpanHandler(BatchSpanProcessor(exporter), service, always)


def _exporter(protocol: str) -> SpanExporter:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()
