"""Prometheus metrics of workers, agents and the controller: what each process knows of itself, on request only.

    metrics = Metrics(job_id=…, node=…)                 labels that are true of the whole process
    serving = serve_if_asked(metrics, port, address)    None when nobody asked (port None) or it cannot be done
    tell_worker(metrics, loop.report(), model=…)        at most once a second, from the process's own loop
    tell_agent(metrics, workers=…, notice=…, …)
    tell_controller(metrics, snapshot, nodes=…, …)

`serving.target` (`127.0.0.1:9400`) belongs into the process's facts as `metrics`, so that scrapers can be pointed at
it. A port of 0 is any free one; another is the first free one from it on, since several processes share a machine.
Values are set by the loop and read by the server's thread; a scrape never calls into the loop.

Names that vLLM has are vLLM's where they mean exactly the same; all others begin with `shuntserve_`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from wsgiref.simple_server import WSGIServer

from shuntserve import telemetry
from shuntserve.errors import InvalidInput, ShuntServeError, Unavailable
from shuntserve.job.watch import Snapshot

PORTS_TRIED = 64
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Metric:
    """One name. A counter's name ends in `_total`."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...] = ()


CATALOGUE: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        # workers
        Metric("shuntserve_worker_state", "gauge", "1 for what the worker is doing.", ("state",)),
        Metric("shuntserve_sequences_in_engine", "gauge", "Sequences given to the engine, running or queued there."),
        Metric("shuntserve_sequences_waiting", "gauge", "Sequences of held chunks not yet given to the engine."),
        Metric("shuntserve_chunks_held", "gauge", "Chunks the worker holds claims on."),
        Metric("shuntserve_chunks_committed_total", "counter", "Chunks this worker has committed."),
        Metric("shuntserve_rows_finished_total", "counter", "Rows of chunks this worker has committed."),
        Metric("shuntserve_rows_rejected_total", "counter", "Of them, rejects."),
        Metric("vllm:generation_tokens_total", "counter", "Number of generation tokens processed.", ("model_name",)),
        Metric("shuntserve_tokens_durable_total", "counter", "Generated tokens that are in the bucket."),
        Metric("shuntserve_tokens_kept_total", "counter", "Tokens taken over from interrupted generations."),
        Metric("shuntserve_sequences_resumed_total", "counter", "Sequences taken over from interrupted generations."),
        Metric("shuntserve_checkpoints_total", "counter", "Checkpoints written."),
        Metric("shuntserve_engine_losses_total", "counter", "Engines lost under this worker.", ("kind",)),
        # agents
        Metric("shuntserve_node_workers", "gauge", "Worker processes that run on this machine."),
        Metric("shuntserve_node_notice", "gauge", "1 once an interruption notice has come."),
        Metric("shuntserve_node_rebalance", "gauge", "1 once a rebalance recommendation has come."),
        Metric("shuntserve_spending_lease_seconds", "gauge", "Until the machine shuts down, unless it is renewed."),
        # the controller
        Metric("shuntserve_controller_state", "gauge", "1 for what the controller is doing.", ("state",)),
        Metric("shuntserve_controller_epoch", "gauge", "Which controller of the job this is."),
        Metric("shuntserve_job_rows", "gauge", "Rows of the job.", ("state",)),
        Metric("shuntserve_job_chunks", "gauge", "Chunks of the job.", ("state",)),
        Metric("shuntserve_job_tokens", "gauge", "Output tokens of the job, by what became of them.", ("state",)),
        Metric("shuntserve_job_interruptions", "gauge", "Workers found dead and engines lost."),
        Metric("shuntserve_job_workers", "gauge", "Workers that have not ended."),
        Metric("shuntserve_nodes", "gauge", "Machines of the job.", ("state",)),
        Metric("shuntserve_spent_usd", "gauge", "What the job's machines have cost so far."),
        Metric("shuntserve_usd_per_hour", "gauge", "What they cost an hour now."),
        Metric("shuntserve_max_cost_usd", "gauge", "The job's budget; absent when there is none."),
        Metric("shuntserve_deadline_seconds", "gauge", "The job's deadline as a Unix time; absent when there is none."),
    )
}


class Metrics:
    """The present values of one process. Set from one thread, read from others."""

    def __init__(self, **always: str | int | None) -> None:
        self._always = {name: str(value) for name, value in always.items() if value is not None}
        self._values: dict[str, dict[tuple[str, ...], float]] = {}
        self._lock = threading.Lock()

    def put(self, name: str, value: float | None, **labels: str) -> None:
        """One value. None takes it away."""
        key = self._key(name, labels)
        with self._lock:
            values = self._values.setdefault(name, {})
            if value is None:
                values.pop(key, None)
            else:
                values[key] = float(value)

    def put_all(self, name: str, by_label: Mapping[str, float]) -> None:
        """All values of a name with one label; what is not named any more is gone."""
        (label,) = CATALOGUE[name].labels
        values = {self._key(name, {label: key}): float(value) for key, value in by_label.items()}
        with self._lock:
            self._values[name] = values

    def _key(self, name: str, labels: Mapping[str, str]) -> tuple[str, ...]:
        wanted = CATALOGUE[name].labels
        if set(labels) != set(wanted):
            raise ValueError(f"{name} has the labels {wanted}, not {tuple(labels)}")
        return tuple(labels[label] for label in wanted)

    def read(self) -> Iterator[tuple[Metric, tuple[str, ...], list[tuple[tuple[str, ...], float]]]]:
        """(metric, names of its labels, values by label values) of all that has values."""
        with self._lock:
            values = {name: dict(found) for name, found in self._values.items() if found}
        always = tuple(self._always.values())
        for name, found in values.items():
            metric = CATALOGUE[name]
            labels = (*self._always, *metric.labels)
            yield metric, labels, [((*always, *key), value) for key, value in found.items()]


# -- what the processes tell -------------------------------------------------------------------------------------------

_WORKER_COUNTERS = {
    "chunks_committed": "shuntserve_chunks_committed_total",
    "rows_finished": "shuntserve_rows_finished_total",
    "rows_rejected": "shuntserve_rows_rejected_total",
    "tokens_durable": "shuntserve_tokens_durable_total",
    "tokens_kept": "shuntserve_tokens_kept_total",
    "resumed": "shuntserve_sequences_resumed_total",
    "checkpoints": "shuntserve_checkpoints_total",
}


def tell_worker(metrics: Metrics, report: Mapping[str, Any], *, model: str) -> None:
    """What a worker reports of itself (`WorkerLoop.report`)."""
    metrics.put_all("shuntserve_worker_state", {str(report["state"]): 1})
    metrics.put("shuntserve_sequences_in_engine", report["in_engine"])
    metrics.put("shuntserve_sequences_waiting", report["waiting"])
    metrics.put("shuntserve_chunks_held", len(report["chunks"]))
    metrics.put("vllm:generation_tokens_total", report["tokens_generated"], model_name=model)
    metrics.put_all("shuntserve_engine_losses_total", {kind: report[kind] for kind in ("crashed", "hung", "killed")})
    for counter, name in _WORKER_COUNTERS.items():
        metrics.put(name, report[counter])


def tell_agent(
    metrics: Metrics, *, workers: int, notice: bool, rebalance: bool, spending_lease_s: float | None
) -> None:
    """How a machine is. `spending_lease_s`: what is left of the lease; None while it has not been seen."""
    metrics.put("shuntserve_node_workers", workers)
    metrics.put("shuntserve_node_notice", notice)
    metrics.put("shuntserve_node_rebalance", rebalance)
    metrics.put("shuntserve_spending_lease_seconds", spending_lease_s)


def tell_controller(
    metrics: Metrics,
    snapshot: Snapshot | None,
    *,
    state: str,
    epoch: int,
    nodes: Mapping[str, int],
    spent_usd: float,
    usd_per_h: float,
    max_cost_usd: float | None,
    deadline_unix_s: float | None,
) -> None:
    """How the job stands. `nodes`: machines by state; `snapshot`: None before its input has been read."""
    metrics.put_all("shuntserve_controller_state", {state: 1})
    metrics.put("shuntserve_controller_epoch", epoch)
    metrics.put_all("shuntserve_nodes", nodes)
    metrics.put("shuntserve_spent_usd", spent_usd)
    metrics.put("shuntserve_usd_per_hour", usd_per_h)
    metrics.put("shuntserve_max_cost_usd", max_cost_usd)
    metrics.put("shuntserve_deadline_seconds", deadline_unix_s)
    if snapshot is None:
        return
    rows = {"total": snapshot.rows_in, "ended": snapshot.rows_ended, "rejected": snapshot.rejected}
    metrics.put_all("shuntserve_job_rows", rows)
    metrics.put_all("shuntserve_job_chunks", {"total": snapshot.chunks, "committed": snapshot.chunks_committed})
    names = {"generated": "tokens_generated", "durable": "tokens_durable", "kept": "tokens_kept"}
    metrics.put_all("shuntserve_job_tokens", {state: snapshot.total(name) for state, name in names.items()})
    metrics.put("shuntserve_job_interruptions", snapshot.interruptions)
    metrics.put("shuntserve_job_workers", len(snapshot.live))


# -- the endpoint ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Serving:
    """An endpoint under way; `target` as a scrape configuration names it."""

    target: str
    close: Callable[[], None]


def serve(metrics: Metrics, port: int, address: str = LOOPBACK) -> Serving:
    """Answer scrapes until closed. Raises InvalidInput without prometheus_client, Unavailable when no port is free."""
    try:
        from prometheus_client import start_http_server
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    except ImportError as error:
        raise InvalidInput("metrics", "need prometheus_client", "pip install prometheus-client") from error

    class Collector:
        """The present values, each time that somebody asks."""

        def collect(self) -> Iterable[Any]:
            for metric, labels, values in metrics.read():
                family: Any
                if metric.kind == "counter":
                    family = CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=labels)
                else:
                    family = GaugeMetricFamily(metric.name, metric.help, labels=labels)
                for key, value in values:
                    family.add_metric(key, value)
                yield family

    reason: OSError | None = None
    for candidate in range(port, port + PORTS_TRIED) if port else (0,):
        try:
            server, thread = start_http_server(candidate, address, Collector())
        except OSError as error:
            reason = error
            continue
        return Serving(f"{address}:{server.server_port}", partial(_close, server, thread))
    assert reason is not None
    cause = reason.strerror or str(reason)
    raise Unavailable(f"metrics on {address}:{port}", cause, "choose another port or address") from reason


def _close(server: WSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()


def serve_if_asked(metrics: Metrics, port: int | None, address: str = LOOPBACK) -> Serving | None:
    """The same, unless `port` is None; never an error: work goes on without metrics, and the log says why."""
    if port is None:
        return None
    try:
        serving = serve(metrics, port, address)
    except ShuntServeError as error:
        telemetry.emit(telemetry.Event.METRICS_UNAVAILABLE, error=str(error))
        return None
    telemetry.emit(telemetry.Event.METRICS_SERVED, target=serving.target)
    return serving
