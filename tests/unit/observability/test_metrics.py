"""Prometheus metrics: off unless asked, on loopback, scraped while they change, and what they say is what there is."""

from __future__ import annotations

import json
import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shuntserve.errors import InvalidInput, Unavailable
from shuntserve.job.status import job_ids
from shuntserve.job.watch import Snapshot, WorkerView
from shuntserve.metrics import CATALOGUE, Metrics, serve, serve_if_asked, tell_agent, tell_controller, tell_worker
from shuntserve.settings import Settings
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from tests.support.command import Workplace, prompts, wait_for

REPORT = {
    "state": "running",
    "in_engine": 5,
    "waiting": 2,
    "chunks": ["1", "2"],
    "tokens_generated": 700,
    "tokens_durable": 600,
    "tokens_kept": 50,
    "resumed": 3,
    "checkpoints": 9,
    "chunks_committed": 4,
    "rows_finished": 40,
    "rows_rejected": 1,
    "crashed": 1,
    "hung": 0,
    "killed": 2,
}


def scrape(target: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Everything a scraper sees, by name and labels."""
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def with_tokens(target: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float] | None:
    """What is scraped, once it tells of generated tokens."""
    seen = scrape(target)
    return seen if any(value > 0 for (name, _), value in seen.items() if name.startswith("vllm:")) else None


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(job_id="job-1", node=None, slot=0)


@pytest.fixture
def target(metrics: Metrics) -> Iterator[str]:
    serving = serve(metrics, 0)
    yield serving.target
    serving.close()


ALWAYS = (("job_id", "job-1"), ("slot", "0"))


def test_a_scrape_sees_what_the_worker_reports(metrics: Metrics, target: str) -> None:
    """Each counter under its name, vLLM's where vLLM has it, with the labels of the process."""
    tell_worker(metrics, REPORT, model="Qwen3")

    seen = scrape(target)

    assert seen["vllm:generation_tokens_total", (*ALWAYS[:1], ("model_name", "Qwen3"), *ALWAYS[1:])] == 700
    assert seen["shuntserve_tokens_durable_total", ALWAYS] == 600
    assert seen["shuntserve_sequences_in_engine", ALWAYS] == 5
    assert seen["shuntserve_chunks_held", ALWAYS] == 2
    losses = {dict(labels)["kind"]: value for (name, labels), value in seen.items() if "losses" in name}
    assert losses == {"crashed": 1, "hung": 0, "killed": 2}


def test_a_state_that_is_over_is_gone(metrics: Metrics, target: str) -> None:
    """Of a quantity with states only those that are now; a value that is not known any more is absent, not zero."""
    tell_worker(metrics, REPORT, model="m")
    tell_worker(metrics, {**REPORT, "state": "draining"}, model="m")
    tell_agent(metrics, workers=2, notice=True, rebalance=False, spending_lease_s=30.0)
    tell_agent(metrics, workers=2, notice=True, rebalance=False, spending_lease_s=None)

    seen = scrape(target)

    assert [dict(labels)["state"] for name, labels in seen if name == "shuntserve_worker_state"] == ["draining"]
    assert not any(name == "shuntserve_spending_lease_seconds" for name, _ in seen)
    assert seen["shuntserve_node_notice", ALWAYS] == 1


def test_the_controller_tells_the_job(metrics: Metrics, target: str) -> None:
    """Rows, chunks, tokens, machines and money; what the job does not have (budget, deadline) is not there."""
    worker = WorkerView("w", 1, False, {"tokens_generated": 70, "tokens_durable": 60, "crashed": 1})
    snapshot = Snapshot(10, 6, 1, 4, 2, (worker,))
    tell_controller(
        metrics, snapshot, state="running", epoch=3, nodes={"ready": 2, "lost": 1}, spent_usd=1.5, usd_per_h=0.5,
        max_cost_usd=None, deadline_unix_s=None,
    )  # fmt: skip

    seen = {(name, dict(labels).get("state")): value for (name, labels), value in scrape(target).items()}

    assert {state: seen["shuntserve_job_rows", state] for state in ("total", "ended", "rejected")} == {
        "total": 10,
        "ended": 6,
        "rejected": 1,
    }
    assert (seen["shuntserve_nodes", "ready"], seen["shuntserve_nodes", "lost"]) == (2, 1)
    assert (seen["shuntserve_spent_usd", None], seen["shuntserve_job_interruptions", None]) == (1.5, 1)
    assert ("shuntserve_max_cost_usd", None) not in seen


def test_scrapes_and_changes_do_not_disturb_each_other(metrics: Metrics, target: str) -> None:
    """While one thread changes everything all the time, every scrape is well formed and of one moment's states."""
    over = threading.Event()

    def change() -> None:
        number = 0
        while not over.is_set():
            number += 1
            metrics.put_all("shuntserve_nodes", {f"s{number}": 1, f"t{number}": 1})

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(30):
            states = [dict(labels)["state"] for name, labels in scrape(target) if name == "shuntserve_nodes"]
            assert {state[1:] for state in states} in (set(), {states[0][1:]} if states else set())
    finally:
        over.set()
        changing.join()


def test_names_and_labels_are_those_of_the_catalogue(metrics: Metrics) -> None:
    """A name nobody declared, or other labels, are errors of the calling code; counters end in _total."""
    with pytest.raises(KeyError):
        metrics.put("shuntserve_nonsense", 1)
    with pytest.raises(ValueError, match="labels"):
        metrics.put("shuntserve_nodes", 1)
    assert all((metric.kind == "counter") == name.endswith("_total") for name, metric in CATALOGUE.items())


def test_nothing_listens_unless_asked(metrics: Metrics) -> None:
    """Without a port there is no endpoint; with one it is on loopback alone."""
    assert serve_if_asked(metrics, None) is None
    serving = serve_if_asked(metrics, 0)
    assert serving is not None
    host, port = serving.target.split(":")

    with closing(socket.create_connection((host, int(port)), timeout=5)):
        assert host == "127.0.0.1"
    with pytest.raises(OSError, match=r".+"), closing(socket.create_connection(("127.0.0.2", int(port)), timeout=5)):
        pass
    serving.close()


def test_several_processes_share_a_first_port(metrics: Metrics) -> None:
    """The second to ask gets the next free port; one that is closed is free again."""
    first = serve(metrics, 0)
    port = int(first.target.split(":")[1])
    second = serve(metrics, port)

    assert int(second.target.split(":")[1]) > port
    first.close()
    second.close()


def test_metrics_that_cannot_be_served_stop_no_work(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An address that is not this machine's: `serve` says so, a process that asks goes on without and logs it."""
    monkeypatch.setattr(logging.getLogger("shuntserve"), "propagate", True)

    with pytest.raises(Unavailable, match="another port or address"):
        serve(metrics, 0, "192.0.2.1")
    with caplog.at_level(logging.INFO, logger="shuntserve"):
        assert serve_if_asked(metrics, 0, "192.0.2.1") is None

    assert [record.getMessage() for record in caplog.records] == ["metrics_unavailable"]


@pytest.mark.parametrize("text", ["-1", "70000", "x", "1.5"])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    """Named by its variable."""
    with pytest.raises(InvalidInput, match="SHUNTSERVE_METRICS_PORT"):
        Settings.from_environment({"SHUNTSERVE_METRICS_PORT": text})


def test_workers_of_a_run_can_be_scraped(tmp_path: Path) -> None:
    """With SHUNTSERVE_METRICS_PORT=0 each worker publishes its target, and answers there with its job's numbers."""
    place = Workplace(tmp_path, {"SHUNTSERVE_METRICS_PORT": "0"})
    place.write(prompts(200))
    command = place.start(*place.run_arguments(slow=True))
    try:
        seen = place.until(
            "two workers at work", lambda seen: sum(one.count("tokens_generated") > 0 for one in seen.live) == 2
        )
        targets = [worker.facts["metrics"] for worker in seen.live]
        scraped = [wait_for("tokens to be told", lambda target=target: with_tokens(target)) for target in targets]
    finally:
        command.child.terminate()
        command.wait()

    bucket = open_bucket(tmp_path / "store")
    (job_id,) = job_ids(bucket)
    assert len(set(targets)) == 2
    labels = [dict(next(labels for name, labels in one if name == "vllm:generation_tokens_total")) for one in scraped]
    assert sorted(label["slot"] for label in labels) == ["0", "1"]
    assert {label["job_id"] for label in labels} == {job_id}
    stored = json.loads(bucket.get(keys.worker(job_id, seen.live[0].incarnation)))
    assert stored["facts"]["metrics"] == targets[0]
