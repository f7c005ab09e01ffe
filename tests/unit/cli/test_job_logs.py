"""Logs of one job on this machine: merged in time, followed, filtered; and what each event says of its place."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from shuntserve import telemetry
from shuntserve.job_logs import LogLine, LogReader, find_logs, wanted

JOB = "job-1"


def at(second: float, event: str, level: str = "info", **fields: object) -> str:
    return json.dumps({"time": f"2030-01-01T00:00:{second:06.3f}+00:00", "level": level, "event": event, **fields})


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(line + "\n" for line in lines))
    return path


def told(lines: list[LogLine]) -> list[tuple[str, str]]:
    return [(line.source, line.event or line.text) for line in lines]


def test_all_processes_are_one_stream_in_time(tmp_path: Path) -> None:
    """Workers, a worker on a machine, its agent, the controller and the command: in order, named by their place."""
    logs = tmp_path / "logs" / JOB
    write(logs / "worker-0/worker.jsonl", at(1, "worker_started"), at(4, "chunk_claimed"))
    write(logs / "n1/worker-0/worker.jsonl", at(3, "worker_started"))
    write(logs / "controller.jsonl", at(2, "controller_acting"))
    write(tmp_path / f"machines/ab12/{JOB}/n1/agent.jsonl", at(2.5, "agent_started"))
    write(tmp_path / "shuntserve.jsonl", at(0, "job_submitted", job=JOB))
    write(logs / "worker-0/engine.log", "no events")

    assert told(list(LogReader(tmp_path, JOB).read())) == [
        ("command", "job_submitted"),
        ("worker-0", "worker_started"),
        ("controller", "controller_acting"),
        ("agent n1", "agent_started"),
        ("n1/worker-0", "worker_started"),
        ("worker-0", "chunk_claimed"),
    ]


def test_other_jobs_are_left_out(tmp_path: Path) -> None:
    """The commands' common log holds events of all jobs; only this one's come, with the text that follows them."""
    write(
        tmp_path / "shuntserve.jsonl",
        at(0, "job_submitted", job="other"),
        "Traceback of the other",
        at(1, "job_submitted", job=JOB),
        "Traceback of ours",
    )
    write(tmp_path / "logs/other/worker-0/worker.jsonl", at(0, "worker_started"))

    assert told(list(LogReader(tmp_path, JOB).read())) == [
        ("command", "job_submitted"),
        ("command", "Traceback of ours"),
    ]


def test_a_traceback_stays_with_its_event(tmp_path: Path) -> None:
    """Lines that are no JSON come right after the event before them, also when another process spoke meanwhile."""
    logs = tmp_path / "logs" / JOB
    write(logs / "worker-0/worker.jsonl", at(1, "engine_lost"), "Traceback:", "  boom", at(3, "worker_exited"))
    write(logs / "worker-1/worker.jsonl", at(2, "worker_started"))

    found = told(list(LogReader(tmp_path, JOB).read()))

    assert [text for _, text in found] == ["engine_lost", "Traceback:", "  boom", "worker_started", "worker_exited"]


def test_following_shows_each_line_once_and_whole(tmp_path: Path) -> None:
    """What is added later comes with the next call, files that appear later too; half a line waits for its end."""
    path = write(tmp_path / "logs" / JOB / "worker-0/worker.jsonl", at(1, "worker_started"))
    reader = LogReader(tmp_path, JOB)
    seen = [told(list(reader.read()))]
    with path.open("a") as file:
        file.write(at(2, "chunk_claimed")[:30])
    seen.append(told(list(reader.read())))
    with path.open("a") as file:
        file.write(at(2, "chunk_claimed")[30:] + "\n")
    write(tmp_path / "logs" / JOB / "worker-1/worker.jsonl", at(1.5, "worker_started"))
    seen.append(told(list(reader.read())))
    seen.append(told(list(reader.read())))

    assert seen == [
        [("worker-0", "worker_started")],
        [],
        [("worker-1", "worker_started"), ("worker-0", "chunk_claimed")],
        [],
    ]


def test_levels_and_events_choose_lines(tmp_path: Path) -> None:
    """At least this level; only these events; text goes with its event."""
    write(
        tmp_path / "logs" / JOB / "worker-0/worker.jsonl",
        at(1, "checkpoint_written", "debug"),
        at(2, "engine_lost"),
        "boom",
        at(3, "row_poisoned", "warning"),
    )

    def chosen(level: str, *events: str) -> list[str]:
        return [text for _, text in told(list(wanted(LogReader(tmp_path, JOB).read(), level, events)))]

    assert chosen("debug") == ["checkpoint_written", "engine_lost", "boom", "row_poisoned"]
    assert chosen("info") == ["engine_lost", "boom", "row_poisoned"]
    assert chosen("warning") == ["row_poisoned"]
    assert chosen("debug", "engine_lost") == ["engine_lost", "boom"]


@pytest.mark.parametrize("name", ["", "..", "../x", "*", "a/b"])
def test_a_job_id_never_names_another_directory(tmp_path: Path, name: str) -> None:
    """An id with a way out of the directory, or one that stands for many, finds nothing."""
    write(tmp_path / "logs/x/worker-0/worker.jsonl", at(1, "worker_started"))
    write(tmp_path / "machines/ab/x/n1/agent.jsonl", at(1, "agent_started"))
    write(tmp_path / "x/worker.jsonl", at(1, "worker_started"))

    assert find_logs(tmp_path, name) == {}


def test_every_event_names_its_process() -> None:
    """What is true of a whole process (its job, its machine) is in every line it logs, and absent when unknown."""
    stream = io.StringIO()
    telemetry.log_to(stream, "info", job=JOB, node=None, slot=0)
    try:
        telemetry.emit(telemetry.Event.CHUNK_CLAIMED, chunk="00000001", epoch=2)
    finally:
        telemetry.LOGGER.handlers.clear()

    line = json.loads(stream.getvalue())
    assert {**line, "time": ""} == {
        "time": "",
        "level": "info",
        "event": "chunk_claimed",
        "job": JOB,
        "slot": 0,
        "chunk": "00000001",
        "epoch": 2,
    }
