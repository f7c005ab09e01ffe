"""What our pipeline executor costs: output tokens/s with equal stages against vLLM's own pipeline executor. And how
many bytes cross between stages.

    python tests/bench/hetero.py --json

Same model, rows, settings, scheduler and worker code; one process per stage, `1,1` on one host. One engine of each kind
stays up, stopped (SIGSTOP) while the other works; start-up is excluded; pairs alternate in order. The ratio is vLLM's
seconds over ours: above 1 is faster than vLLM's. A decode step takes at least the `step_ms` printed. Bytes are counted
by the senders of a third engine, whose stages are unlike, against what its rows' positions hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shuntserve.core.topology import PipelineTopology
from shuntserve.engine.port import Delta, EngineReady, SequenceRequest
from shuntserve.engine.process import EngineProcess
from shuntserve.engine.session import Session
from shuntserve.sim.tiny_model import TinyModel, write_tiny_model

BACKEND = "shuntserve.engine.vllm_backend:VllmBackend"
LAYERS = 8
EQUAL = PipelineTopology.of([1, 1], [4, 4])
UNLIKE = PipelineTopology.of([2, 1], [5, 3])
START_TIMEOUT_S = 300.0
ELEMENT_BYTES = 4
TENSORS = 2
"""Hidden states and residual."""


def options(model: Path, arguments: argparse.Namespace, topology: PipelineTopology, executor: str) -> dict[str, Any]:
    return {
        "model": str(model),
        "cpu_threads": 1,
        "engine": {
            "dtype": "float32",
            "max_model_len": 512,
            "enforce_eager": True,
            "kv_cache_memory_bytes": 1 << 28,
            "max_num_seqs": arguments.seats,
            "enable_prefix_caching": False,
        },
        "pipeline": {"topology": topology.to_json(), "executor": executor},
    }


def requests(arguments: argparse.Namespace) -> list[SequenceRequest]:
    """All of one length, so that every step but the first few decodes a full batch."""
    return [
        SequenceRequest(
            f"row {row}",
            [300 + (11 * row + 17 * i) % 390 for i in range(arguments.prompt_tokens)],
            {"max_tokens": arguments.max_tokens, "temperature": 0.0, "seed": 0, "ignore_eos": True},
        )
        for row in range(arguments.rows)
    ]


# --- speed


class Engine:
    """One engine that is up."""

    def __init__(self, name: str, engine_options: dict[str, Any], directory: Path) -> None:
        self.name = name
        self._process = EngineProcess(BACKEND, engine_options, directory / f"{name}.log", hang_s=600.0)
        self._process.start()
        events = self._process.poll(START_TIMEOUT_S)
        if not events or not isinstance(events[0], EngineReady):
            raise SystemExit(f"{name} did not start: {events}")

    def run_s(self, rows: Sequence[SequenceRequest]) -> float:
        """Seconds for all rows."""
        began = time.perf_counter()
        self._process.submit(rows)
        left = len(rows)
        while left:
            for event in self._process.poll(10.0):
                if not isinstance(event, Delta):
                    raise SystemExit(f"{self.name}: {event}")
                left -= event.finish_reason is not None
        return time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Its processes get no time meanwhile."""
        pids = self._process.process_ids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        self._process.stop()


def compare(arguments: argparse.Namespace, model: Path, directory: Path) -> dict[str, Any]:
    rows = requests(arguments)
    theirs = Engine("vllm", options(model, arguments, EQUAL, "auto"), directory)
    ours = Engine("plugin", options(model, arguments, EQUAL, "plugin"), directory)
    seconds: dict[str, list[float]] = {theirs.name: [], ours.name: []}
    try:
        for pair in range(-1, arguments.pairs):  # the first pair warms up
            for engine, other in ((theirs, ours), (ours, theirs))[:: 1 if pair % 2 else -1]:
                with other.paused():
                    took_s = engine.run_s(rows)
                if pair >= 0:
                    seconds[engine.name].append(took_s)
            if pair >= 0 and not arguments.json:
                print(f"pair {pair}: vLLM {seconds['vllm'][-1]:.2f} s, ours {seconds['plugin'][-1]:.2f} s", flush=True)
    finally:
        theirs.stop()
        ours.stop()
    ratios = [a / b for a, b in zip(seconds["vllm"], seconds["plugin"], strict=True)]
    low, high = interval(ratios, random.Random(1))
    tokens = arguments.rows * arguments.max_tokens
    median_s = {name: statistics.median(values) for name, values in seconds.items()}
    # Every sequence needs one step a token; two batches are under way, one in each stage.
    steps = arguments.max_tokens * -(-arguments.rows // arguments.seats) * len(EQUAL.stages)
    return {
        "pairs": arguments.pairs,
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_ci95": [round(low, 4), round(high, 4)],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "vllm_tokens_per_s": round(tokens / median_s["vllm"], 1),
        "plugin_tokens_per_s": round(tokens / median_s["plugin"], 1),
        "step_ms": round(1000 * median_s["vllm"] / steps, 1),
    }


def interval(values: Sequence[float], rng: random.Random, draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(draws * 0.025)], medians[int(draws * 0.975)]


# --- bytes


async def count_bytes(arguments: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Runs the rows through unlike stages in this process and asks the workers what they have sent for them."""
    from shuntserve.engine.vllm_backend import VllmBackend

    rows = requests(arguments)
    left = {row.seq_id for row in rows}
    done = asyncio.Event()

    def took(event: Any) -> None:
        if event.finish_reason is not None:
            left.discard(event.seq_id)
            if not left:
                done.set()

    backend = VllmBackend(options(model, arguments, UNLIKE, "plugin"), took)
    await backend.start()
    before = await backend._llm.collective_rpc("transport_counters")
    for row in rows:
        backend.submit(row)
    await done.wait()
    after = await backend._llm.collective_rpc("transport_counters")
    await backend.stop()

    def sent(name: str) -> int:
        return sum(later[name] - earlier[name] for later, earlier in zip(after, before, strict=True))

    # Each row's prompt and each token but the last pass through the stages once.
    positions = arguments.rows * (arguments.prompt_tokens + arguments.max_tokens - 1)
    activations = positions * arguments.hidden * ELEMENT_BYTES * TENSORS
    return {
        "stages": UNLIKE.describe(),
        "activation_bytes": activations,
        "sent_tensor_bytes": sent("tensor_bytes"),
        "sent_header_bytes": sent("header_bytes"),
        "bytes_ratio": round((sent("tensor_bytes") + sent("header_bytes")) / activations, 5),
        "share_of_each_sender": [
            round(a["tensor_bytes"] / max(1, sum(c["tensor_bytes"] for c in after)), 3) for a in after
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seats", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only-bytes", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_bytes:
        print("@" + json.dumps(asyncio.run(count_bytes(arguments, arguments.model))), flush=True)
        return 0
    with tempfile.TemporaryDirectory(prefix="shuntserve-hetero-") as name:
        directory = Path(name)
        shape = TinyModel(
            hidden_size=arguments.hidden, layers=LAYERS, heads=arguments.hidden // 64, kv_heads=4, head_dim=64,
            intermediate_size=arguments.hidden * 8 // 3 // 64 * 64,
        )  # fmt: skip
        model = write_tiny_model(directory / "model", shape)
        result = {"benchmark": "hetero", **compare(arguments, model, directory), **in_a_child(arguments, model)}
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:24} {value}")
    return 0


def in_a_child(arguments: argparse.Namespace, model: Path) -> dict[str, Any]:
    """`count_bytes` in a session of its own, of which nothing is left afterwards."""
    sizes = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in ("rows", "seats", "hidden")]
    sizes += [f"--prompt-tokens={arguments.prompt_tokens}", f"--max-tokens={arguments.max_tokens}"]
    with subprocess.Popen(
        [sys.executable, __file__, "--only-bytes", f"--model={model}", *sizes],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if line.startswith("@"):
                    counted: dict[str, Any] = json.loads(line[1:])
                    return counted
        finally:
            Session(child.pid).end(30.0)
    raise SystemExit("the engine that counts bytes did not come up")


if __name__ == "__main__":
    sys.exit(main())
