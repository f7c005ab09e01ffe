"""What the engine port costs: output tokens/s of an `EngineProcess` against bare `vllm.LLM.generate`, same rows and
settings.

    python tests/bench/engine_port.py --json

The lower half of `overhead.py`: no worker loop, no store, only the way of sequences into the engine process and of
deltas back. One engine of each kind stays up, stopped (SIGSTOP) while the other works; start-up is excluded; pairs
alternate in order. The ratio is bare seconds over ours: above 1 is faster than bare."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shuntserve.engine.port import Delta, EngineReady, SequenceRequest
from shuntserve.engine.process import EngineProcess
from shuntserve.engine.session import Session
from shuntserve.sim.tiny_model import TinyModel, write_tiny_model

BACKEND = "shuntserve.engine.vllm_backend:VllmBackend"
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
MAX_MODEL_LEN = 1024
BARE = """
import json, sys, time
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    given = json.loads(sys.stdin.readline())
    llm = LLM(model=given["model"], disable_log_stats=True, **given["engine"])
    prompts = [{"prompt_token_ids": ids} for ids in given["prompts"]]
    params = [SamplingParams(**one) for one in given["params"]]
    answer = lambda value: print("@" + json.dumps(value), flush=True)
    answer(None)
    for _ in sys.stdin:
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        answer({"seconds": seconds, "tokens": sum(len(one.outputs[0].token_ids) for one in outputs)})
"""


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides do: rows of token ids with their parameters, on one engine configuration."""

    model: str
    prompts: list[list[int]]
    params: list[dict[str, Any]]
    seats: int
    threads: int

    def engine(self) -> dict[str, Any]:
        return {
            "dtype": "float32",
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": self.seats,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "kv_cache_memory_bytes": 1 << 30,
        }


class Bare:
    """`vllm.LLM` in a process of its own. `inline` keeps the engine core in it, the fastest layout; otherwise vLLM's
    default: core and worker processes below it."""

    def __init__(self, work: Work, log_path: Path, *, inline: bool) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(work.threads)}
        if inline:
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        script = log_path.with_suffix(".py")
        script.write_text(BARE)
        self.child = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_path.open("wb"),
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.processes = Session(self.child.pid)
        given = {"model": work.model, "engine": work.engine(), "prompts": work.prompts, "params": work.params}
        self._say(json.dumps(given))
        self._answer()
        self.go()

    def _say(self, line: str) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()

    def _answer(self) -> Any:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError("bare vLLM ended; see its log")

    def go(self) -> dict[str, float]:
        """All rows once."""
        self._say("go")
        answer: dict[str, float] = self._answer()
        return answer

    def stop(self) -> None:
        self.processes.end(10.0)
        self.child.wait()


class Port:
    """An engine process, driven as a worker would, but by nothing else than the port."""

    def __init__(self, work: Work, log_path: Path, stream_interval_tokens: int) -> None:
        options = {
            "model": work.model,
            "engine": work.engine(),
            "cpu_threads": work.threads,
            "stream_interval_tokens": stream_interval_tokens,
        }
        rows = enumerate(zip(work.prompts, work.params, strict=True))
        self._requests = [SequenceRequest(str(row), prompt, one) for row, (prompt, one) in rows]
        self.engine = EngineProcess(BACKEND, options, log_path)
        self.engine.start()
        (ready,) = self.engine.poll(600.0)
        if not isinstance(ready, EngineReady):
            raise RuntimeError(f"the engine did not start: {ready}")
        self.go()

    def go(self) -> dict[str, float]:
        """All rows once."""
        began = time.perf_counter()
        self.engine.submit(self._requests)
        left, tokens = len(self._requests), 0
        while left:
            for event in self.engine.poll(1.0):
                if not isinstance(event, Delta):
                    raise RuntimeError(f"unexpected: {event}")
                tokens += len(event.token_ids)
                left -= event.finish_reason is not None
        return {"seconds": time.perf_counter() - began, "tokens": tokens}


def confidence_interval(values: Sequence[float], rng: random.Random, draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(draws * 0.025)], medians[int(draws * 0.975)]


@contextmanager
def stopped(pids: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Processes that take no time while others are measured."""
    for pid in pids():
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in pids():
        os.kill(pid, signal.SIGCONT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--seats", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stream-interval", type=int, default=16, help="tokens of a sequence between two deltas")
    parser.add_argument("--bare", choices=["default", "inline"], default="default", help="layout of plain vLLM")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)

    rng = random.Random(5)
    model = TinyModel(
        hidden_size=512,
        layers=6,
        heads=8,
        kv_heads=4,
        head_dim=64,
        intermediate_size=1536,
        max_model_len=MAX_MODEL_LEN,
    )
    prompts = [[rng.randrange(10, 250) for _ in range(rng.randint(16, 128))] for _ in range(arguments.rows)]
    lengths = [rng.randint(arguments.max_tokens // 2, arguments.max_tokens) for _ in prompts]
    params = [
        {"max_tokens": n, "temperature": arguments.temperature, "seed": i, "ignore_eos": True}
        for i, n in enumerate(lengths)
    ]
    pairs: list[tuple[dict[str, float], dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="engine-port-") as name:
        directory = Path(name)
        write_tiny_model(directory / "model", model)
        work = Work(str(directory / "model"), prompts, params, arguments.seats, arguments.threads)
        port = Port(work, directory / "engine.log", arguments.stream_interval)
        with stopped(lambda: port.engine.process_ids):
            bare = Bare(work, directory / "bare.log", inline=arguments.bare == "inline")

        def ours() -> dict[str, float]:
            with stopped(bare.processes.members):
                return port.go()

        def theirs() -> dict[str, float]:
            with stopped(lambda: port.engine.process_ids):
                return bare.go()

        for index in range(arguments.pairs):
            if index % 2:
                mine = ours()
                other = theirs()
            else:
                other = theirs()
                mine = ours()
            assert mine["tokens"] == other["tokens"] == sum(lengths)
            pairs.append((mine, other))
            ratio = other["seconds"] / mine["seconds"]
            print(f"pair {index + 1}: ratio {ratio:.3f}", file=sys.stderr, flush=True)
        port.engine.stop()
        bare.stop()

    ratios = [bare_pass["seconds"] / port_pass["seconds"] for port_pass, bare_pass in pairs]
    low, high = confidence_interval(ratios, random.Random(1))
    bare_s = statistics.median(bare_pass["seconds"] for _, bare_pass in pairs)
    port_s = statistics.median(port_pass["seconds"] for port_pass, _ in pairs)
    result = {
        "pairs": len(pairs),
        "rows": arguments.rows,
        "seats": arguments.seats,
        "threads": arguments.threads,
        "bare": arguments.bare,
        "stream_interval_tokens": arguments.stream_interval,
        "output_tokens": sum(lengths),
        "step_ms": round(1000 * bare_s * arguments.seats / sum(lengths), 1),
        "bare_tok_s": round(sum(lengths) / bare_s, 1),
        "port_tok_s": round(sum(lengths) / port_s, 1),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_ci95": [round(low, 4), round(high, 4)],
        "ratios": [round(ratio, 4) for ratio in ratios],
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:24} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
