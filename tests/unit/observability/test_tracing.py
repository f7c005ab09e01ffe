"""Spans made from events: begun and ended by them, in one trace a job, with no text of the user's."""

from __future__ import annotations

import http.server
import logging
import threading
from collections.abc import Iterator
from typing import Self

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shuntserve import telemetry
from shuntserve.telemetry import LOGGER, Event
from shuntserve.tracing import SPANS, SpanHandler, traced


@pytest.fixture
def level() -> Iterator[None]:
    before = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    yield
    LOGGER.setLevel(before)


class Recorded:
    """One process's events as spans."""

    def __init__(self, **always: object) -> None:
        self.exporter = InMemorySpanExporter()
        self.handler = SpanHandler(SimpleSpanProcessor(self.exporter), "test", always)

    def __enter__(self) -> Self:
        LOGGER.addHandler(self.handler)
        return self

    def __exit__(self, *error: object) -> None:
        LOGGER.removeHandler(self.handler)
        self.handler.close()

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()


@pytest.mark.usefixtures("level")
def test_a_chunk_is_a_span_from_claim_to_commit() -> None:
    """Two chunks at once, one given back: each span has its own end, and says which event that was."""
    with Recorded(job="job-1", node=None) as seen:
        telemetry.emit(Event.CHUNK_CLAIMED, chunk="1", epoch=0, rows=8)
        telemetry.emit(Event.CHUNK_CLAIMED, chunk="2", epoch=3, rows=9)
        telemetry.emit(Event.CHUNK_RELEASED, chunk="2", epoch=3)
        telemetry.emit(Event.CHUNK_COMMITTED, chunk="1", epoch=0, won=True)
        spans = seen.spans

    told = [(span.name, dict(span.attributes or {})) for span in spans]
    assert [name for name, _ in told] == ["chunk", "chunk"]
    assert [one["shuntserve.chunk"] for _, one in told] == ["2", "1"]
    assert [one["shuntserve.ended_by"] for _, one in told] == ["chunk_released", "chunk_committed"]
    assert told[1][1]["shuntserve.rows"] == 8
    assert all(span.start_time <= span.end_time for span in spans if span.start_time and span.end_time)


@pytest.mark.usefixtures("level")
def test_all_processes_of_a_job_share_a_trace() -> None:
    """A worker and the command, which know nothing of each other: one trace; another job: another."""
    traces = []
    for job, service in (("job-1", "run"), ("job-1", "worker"), ("job-2", "run")):
        with Recorded() as seen:
            telemetry.emit(Event.INGEST_STARTED, job=job, files=service)
            telemetry.emit(Event.INGEST_FINISHED, job=job)
            (span,) = seen.spans
            assert span.parent is not None
            traces.append((span.parent.trace_id, span.parent.span_id))

    assert traces[0] == traces[1] != traces[2]


@pytest.mark.usefixtures("level")
def test_what_is_open_at_the_end_is_not_lost() -> None:
    """A worker that leaves with chunks in hand: its spans are ended with the process."""
    recorded = Recorded(job="j")
    with recorded:
        telemetry.emit(Event.WORKER_STARTED, worker="w")
        telemetry.emit(Event.CHUNK_CLAIMED, chunk="1", epoch=0)
        telemetry.emit(Event.CHUNK_COMMITTED, chunk="other", epoch=0)
        assert recorded.spans == ()

    assert sorted(span.name for span in recorded.spans) == ["chunk", "worker"]


def test_every_span_ends_with_another_event() -> None:
    """No event begins and ends spans of one kind, and two kinds never have one name."""
    assert all(begin not in kind.ends for begin, kind in SPANS.items())
    assert len({kind.name for kind in SPANS.values()}) == len(SPANS)


@pytest.mark.usefixtures("level")
def test_without_an_endpoint_nothing_is_traced() -> None:
    """No handler is added, whatever is logged."""
    before = list(LOGGER.handlers)
    with traced(None, "grpc", "test"):
        assert LOGGER.handlers == before


@pytest.mark.usefixtures("level")
def test_spans_reach_the_endpoint_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the standard variable set, a collector on loopback is sent the spans when the process ends."""
    bodies: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    try:
        with traced(endpoint, "http/protobuf", "shuntserve-worker", job="job-1", node="n1"):
            telemetry.emit(Event.CHUNK_CLAIMED, chunk="00000007", epoch=2)
            telemetry.emit(Event.CHUNK_COMMITTED, chunk="00000007", epoch=2)
    finally:
        server.shutdown()
        server.server_close()

    assert [path for path, _ in bodies] == ["/v1/traces"]
    assert b"shuntserve.chunk" in bodies[0][1]
    assert b"00000007" in bodies[0][1]
