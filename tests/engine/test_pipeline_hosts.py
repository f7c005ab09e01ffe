"""Pipelines over two hosts with addresses of their own, and everything that can be taken away from them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shuntserve.core.topology import PipelineTopology
from shuntserve.engine.node import Exit
from shuntserve.engine.port import LossKind
from shuntserve.sim.tiny_model import TinyModel, write_tiny_model
from tests.support import vllm_driver
from tests.support.netns import Hosts, hosts
from tests.support.pipelines import Pipeline, rows, worker_of

__all__ = ["hosts"]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

TOPOLOGY = PipelineTopology.of([2, 1], [5, 3], node_ranks=[2, 1])
OVER_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), TinyModel("llama", layers=8, mean_output_tokens=60))


def lose(pipeline: Pipeline, strike: Callable[[], None]) -> tuple[LossKind, str]:
    """Strike in the middle of generation. The leader says so and no process is left on either host within ten seconds,
    and every sequence has kept a beginning of what it would have become."""
    requests = rows(max_tokens=400)
    outputs = {request.seq_id: vllm_driver.Output() for request in requests}
    pipeline.engine.submit(requests)
    while min(len(output.token_ids) for output in outputs.values()) < 5:
        for event in pipeline.engine.poll(5.0):
            outputs[event.seq_id].take(event)  # type: ignore[union-attr]
    struck_s = time.monotonic()

    strike()
    lost, late = vllm_driver.until_lost(pipeline.engine, within_s=OVER_WITHIN_S)
    pipeline.all_gone_s(within_s=OVER_WITHIN_S - (time.monotonic() - struck_s))

    for delta in late:
        outputs[delta.seq_id].take(delta)
    assert all(output.finish_reason is None for output in outputs.values())
    print(f"over {time.monotonic() - struck_s:.2f} s after the strike: {lost}")
    return lost.kind, lost.detail


def test_a_cable_cut_without_a_word_ends_the_generation_on_both_sides(
    hosts: Hosts, model: Path, tmp_path: Path
) -> None:
    """Two hosts give the tokens of one process. Then packets vanish, nothing closes a connection: both sides give up
    within ten seconds, the node as `OVER`, and no row is blamed."""
    alone = vllm_driver.started(vllm_driver.options(model), tmp_path / "alone.log")
    try:
        expected = vllm_driver.generate(alone, rows())
    finally:
        alone.stop()
    with Pipeline(model, TOPOLOGY, tmp_path, hosts=hosts) as pipeline:
        pipeline.start()
        piped = vllm_driver.generate(pipeline.engine, rows())

        kind, detail = lose(pipeline, lambda: hosts.cut("b"))

        assert {name: output.token_ids for name, output in piped.items()} == {
            name: output.token_ids for name, output in expected.items()
        }
        assert kind is LossKind.KILLED, detail
        assert "node 1 of the pipeline (stage 1)" in detail
        assert pipeline.nodes[0].exit_status() == Exit.OVER


@pytest.mark.soak
def test_a_killed_stage_worker_on_the_other_host_ends_the_generation(hosts: Hosts, model: Path, tmp_path: Path) -> None:
    """SIGKILL of one worker: its neighbours fail by exceptions of their own, yet the kill is what is reported."""
    with Pipeline(model, TOPOLOGY, tmp_path, hosts=hosts) as pipeline:
        pipeline.start()

        kind, detail = lose(pipeline, lambda: os.kill(worker_of(pipeline.nodes[0].process_ids), signal.SIGKILL))

        assert kind is LossKind.KILLED, detail
        assert "ended by SIGKILL" in detail
        assert pipeline.nodes[0].exit_status() == Exit.FAILED


STRIKES: dict[str, Callable[[Pipeline], None]] = {
    "a worker of the leader": lambda p: os.kill(worker_of(p.engine.process_ids), signal.SIGKILL),
    "the engine core": lambda p: os.kill(p.engine.process_ids[1], signal.SIGKILL),
    "the node process": lambda p: os.kill(p.nodes[0].process_ids[0], signal.SIGKILL),
    "the node process, stopped": lambda p: os.kill(p.nodes[0].process_ids[0], signal.SIGSTOP),
    "the other host": lambda p: [os.kill(pid, signal.SIGKILL) for pid in p.nodes[0].process_ids] and None,
    "the engine host, stopped": lambda p: os.kill(p.engine.process_ids[0], signal.SIGSTOP),
}


@pytest.mark.soak
@pytest.mark.parametrize("strike", STRIKES)
def test_any_loss_ends_the_generation_everywhere(hosts: Hosts, model: Path, tmp_path: Path, strike: str) -> None:
    """Whichever process is killed or stopped, ten seconds later nothing is left on either host and no row is blamed."""
    with Pipeline(model, TOPOLOGY, tmp_path, hosts=hosts) as pipeline:
        pipeline.start()

        kind, detail = lose(pipeline, lambda: STRIKES[strike](pipeline))

        assert kind is LossKind.KILLED, detail
