"""Engines that die, hang, are stopped or orphaned: what the worker sees, and what the next engine makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shuntserve.engine.port import LossKind, SequenceRequest
from shuntserve.engine.process import EngineProcess
from shuntserve.engine.session import Session
from tests.support import markers, vllm_driver

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
ROWS = 6
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 0.9, "top_p": 0.9, "presence_penalty": 0.8},
    {"temperature": 0.9, "logprobs": 1},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"temperature": 0.9, "structured_outputs": {"regex": "[a-f]{100,300}"}},
]


def rows(max_tokens: int = 200) -> list[SequenceRequest]:
    return [
        SequenceRequest(
            f"row {row}",
            [300 + (11 * row + 17 * i) % 390 for i in range(20 + 9 * row)],
            {"max_tokens": max_tokens, "seed": row, "ignore_eos": True, **PARAMS[row]},
        )
        for row in range(ROWS)
    ]


def engine_of(model: Path, log_path: Path, **options: Any) -> EngineProcess:
    return vllm_driver.started(
        vllm_driver.options(model, enable_prefix_caching=False, scheduler_cls=markers.FAULTY_SCHEDULER, **options),
        log_path,
    )


def collect(engine: EngineProcess, tokens: int) -> dict[str, vllm_driver.Output]:
    """Submit the rows and poll until each has at least so many tokens."""
    outputs = {request.seq_id: vllm_driver.Output() for request in rows()}
    engine.submit(rows())
    while min(len(output.token_ids) for output in outputs.values()) < tokens:
        for event in engine.poll(1.0):
            outputs[event.seq_id].take(event)  # type: ignore[union-attr]
    return outputs


def test_rows_survive_a_stop_and_a_hang(qwen: Path, tmp_path: Path) -> None:
    """The same rows go through engines that are lost in different ways, each told apart and within ten seconds; the
    whole equals an undisturbed run. (For an abort in the middle of a step see tests/e2e/test_kills_vllm.py.)"""
    engine = engine_of(qwen, tmp_path / "1.log")
    undisturbed = vllm_driver.generate(engine, rows())

    # stopped from outside
    so_far = collect(engine, 20)
    core = engine.process_ids[1]
    before_s = time.monotonic()
    os.kill(core, signal.SIGSTOP)
    lost, late = vllm_driver.until_lost(engine, within_s=15)
    assert lost.kind is LossKind.KILLED, lost
    assert time.monotonic() - before_s < 10
    assert engine.process_ids == ()
    for delta in late:
        so_far[delta.seq_id].take(delta)

    def continued(outputs: dict[str, vllm_driver.Output]) -> list[SequenceRequest]:
        return [
            SequenceRequest(row.seq_id, row.prompt_token_ids, row.params, outputs[row.seq_id].token_ids)
            for row in rows()
        ]

    # a row hangs the next one
    engine = engine_of(qwen, tmp_path / "2.log")
    hang = SequenceRequest(
        "hang",
        markers.marked([300, 301], markers.HANG),
        {"max_tokens": 9, "temperature": 0.0, "seed": 0},
    )
    engine.submit([hang])
    before_s = time.monotonic()
    lost, _ = vllm_driver.until_lost(engine, within_s=15)
    assert lost.kind is LossKind.HUNG, lost
    assert time.monotonic() - before_s < 10
    assert engine.process_ids == ()

    # the third finishes; its core then fails by an exception, whose text is the cause
    engine = engine_of(qwen, tmp_path / "3.log")
    rest = vllm_driver.generate(engine, continued(so_far))
    for name, whole in undisturbed.items():
        assert so_far[name].token_ids + rest[name].token_ids == whole.token_ids, name
        assert rest[name].text == whole.text
        assert rest[name].finish_reason == whole.finish_reason
    engine.submit([SequenceRequest("raise", markers.marked([300], markers.RAISE), {"max_tokens": 9, "seed": 0})])
    lost, _ = vllm_driver.until_lost(engine, within_s=15)
    assert lost.kind is LossKind.CRASHED
    assert "RuntimeError: planted fault" in lost.detail


def test_no_engine_process_outlives_a_killed_worker(qwen: Path, tmp_path: Path) -> None:
    """SIGKILL of the worker in the middle of generation ends host and core, even a core that is stopped."""
    program = (
        "from pathlib import Path\n"
        "from shuntserve.engine.port import SequenceRequest\n"
        "from tests.support import vllm_driver\n"
        f"options = vllm_driver.options(Path({str(qwen)!r}))\n"
        f"engine = vllm_driver.started(options, Path({str(tmp_path / 'engine.log')!r}))\n"
        "engine.submit([SequenceRequest('a', [300], {'max_tokens': 500, 'seed': 0, 'ignore_eos': True})])\n"
        "engine.poll(10.0)\n"
        "print(*engine.process_ids, flush=True)\n"
        "while True: engine.poll(1.0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as worker:
        assert worker.stdout is not None
        host, core = (int(pid) for pid in worker.stdout.readline().split())
        os.kill(core, signal.SIGSTOP)

        worker.kill()

    session = Session(host)
    deadline_s = time.monotonic() + 5
    while session.members() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    left = session.members()
    session.kill()
    assert left == ()


def test_a_core_that_is_told_to_end_finishes_no_sequence(qwen: Path, tmp_path: Path) -> None:
    """SIGTERM makes vLLM's core abort its sequences in good order; to the worker that is a kill, and no row is done."""
    engine = engine_of(qwen, tmp_path / "engine.log")
    collect(engine, 5)

    os.kill(engine.process_ids[1], signal.SIGTERM)
    lost, deltas = vllm_driver.until_lost(engine, within_s=15)

    assert lost.kind is LossKind.KILLED, lost
    assert all(delta.finish_reason is None for delta in deltas)


@pytest.mark.soak
def test_a_killed_worker_process_of_a_tensor_parallel_engine_is_told_apart(qwen: Path, tmp_path: Path) -> None:
    """vLLM ends such an engine by an exception after seconds; we say at once that a worker was killed."""
    engine = engine_of(qwen, tmp_path / "engine.log", tensor_parallel_size=2)
    undisturbed = vllm_driver.generate(engine, rows(40))
    collect(engine, 5)
    workers = [pid for pid in engine.process_ids if b"Worker" in Path(f"/proc/{pid}/comm").read_bytes()]
    assert len(workers) == 2
    before_s = time.monotonic()

    os.kill(workers[1], signal.SIGKILL)
    lost, _ = vllm_driver.until_lost(engine, within_s=15)

    assert lost.kind is LossKind.KILLED, lost
    assert "engine worker ended by SIGKILL" in lost.detail
    assert time.monotonic() - before_s < 2
    assert all(len(output.token_ids) == 40 for output in undisturbed.values())
