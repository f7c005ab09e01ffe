"""What durability costs: output tokens/s of the `run` path against bare `vllm.LLM.generate`, on the same rows and
settings.

    python tests/bench/overhead.py --json

One engine of each kind stays up, idle while the other works; start-up is excluded. The run path is everything after
it: the worker loop with its claims, the engine process, checkpoints, commits to a local store, and the writing of the
output. Pairs alternate in order. CPU of checkpoints: worker CPU of run passes that checkpoint every `--interval`
seconds less that of passes that never do, as a share of all CPU of a pass."""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
MAX_MODEL_LEN = 1024


@dataclass(frozen=True, slots=True)
class Setting:
    """One configuration of both sides."""

    rows: int
    seats: int
    max_tokens: int
    threads: int
    bare: str
    """How plain vLLM is laid out. `same`: as in our engine process, an engine core of its own that computes by itself;
    `default`: as vLLM does it on a CPU, with a worker process below the core; `inline`: all in the caller's process."""
    dtype: str = "float32"

    def engine(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": self.seats,
            "enforce_eager": True,
            "enable_prefix_caching": False,
        }


BARE = """
import json, sys, time
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    given = json.loads(sys.argv[1])
    llm = LLM(model=given["model"], disable_log_stats=True, **given["engine"])
    prompts = [{"prompt_token_ids": ids} for ids in given["prompts"]]
    params = [SamplingParams(**one) for one in given["params"]]
    answer = lambda value: print("@" + json.dumps(value), flush=True)
    llm.generate(prompts, params, use_tqdm=False)
    answer("ready")
    for _ in sys.stdin:
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        answer({"seconds": seconds, "tokens": sum(len(one.outputs[0].token_ids) for one in outputs)})
"""


class Bare:
    """`vllm.LLM` in a process of its own."""

    def __init__(
        self, directory: Path, setting: Setting, prompts: Sequence[Sequence[int]], params: Sequence[Any]
    ) -> None:
        script = directory / "bare.py"
        script.write_text(BARE)
        given = {
            "model": str(directory / "model"),
            "engine": setting.engine() | ({"distributed_executor_backend": "uni"} if setting.bare == "same" else {}),
            "prompts": [list(prompt) for prompt in prompts],
            "params": list(params),
        }
        self._child = subprocess.Popen(
            [sys.executable, str(script), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(directory / "bare.log").open("wb"),
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(setting.threads),
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if setting.bare == "inline" else "1",
            },
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError("bare vLLM ended; see bare.log")

    def go(self) -> dict[str, float]:
        assert self._child.stdin is not None
        self._child.stdin.write("go\n")
        self._child.stdin.flush()
        answer: dict[str, float] = self._answer()
        return answer

    def stop(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


class KeptEngine:
    """An engine that outlives a job: a worker loop that starts it finds it ready."""

    def __init__(self, engine: Any, ready: Any) -> None:
        self._engine = engine
        self._news: list[Any] = [ready]

    def start(self) -> None:
        pass

    def submit(self, requests: Any) -> None:
        self._engine.submit(requests)

    def abort(self, seq_ids: Any) -> None:
        self._engine.abort(seq_ids)

    def poll(self, timeout_s: float) -> list[Any]:
        news, self._news = self._news, []
        return news or self._engine.poll(timeout_s)

    def stop(self) -> None:
        pass


class Run:
    """The run path over one engine process: each pass is a job of its own, from its manifest to its output."""

    def __init__(self, directory: Path, setting: Setting, rows_file: Path) -> None:
        from shuntserve.core.specs import JobSpec
        from shuntserve.engine.port import EngineReady
        from shuntserve.job.submission import resolve
        from shuntserve.store.open import open_bucket
        from shuntserve.wiring import vllm_engine

        self._directory = directory
        self._bucket = open_bucket(directory / "store")
        self._spec = JobSpec(
            input=str(rows_file),
            model=str(directory / "model"),
            engine=setting.engine(),
            seed=3,
            max_length_finish_fraction=1.0,
            expected_workers=1,
        )
        self._passes = 0
        job = resolve(self._spec)
        self._engine = vllm_engine(job, directory, {"cpu_threads": setting.threads})()
        self._engine.start()
        while not (news := self._engine.poll(1.0)):
            pass
        (self._ready,) = news
        if not isinstance(self._ready, EngineReady):
            raise RuntimeError(f"the engine did not start: {self._ready}")

    def go(self, interval_s: float) -> dict[str, float]:
        """One job; seconds from the worker's first tick to the last byte of output."""
        from shuntserve.job.carried import carried_type
        from shuntserve.job.finalize import finalize
        from shuntserve.job.ingest import ingest
        from shuntserve.job.output_place import OutputPlace
        from shuntserve.job.submission import submit_spec
        from shuntserve.job.threads import ThreadSpawner
        from shuntserve.job.worker import WorkerLoop
        from shuntserve.job.worker_main import worker_config
        from shuntserve.store.open import open_bucket

        self._passes += 1
        job = submit_spec(self._bucket, self._spec.model_copy(update={"rerun": f"pass-{self._passes}"}))
        manifest = ingest(self._bucket, job)
        place = OutputPlace(open_bucket(self._directory / f"out-{self._passes}"))
        place.reserve(job.job_id, self._bucket.url, overwrite=False)
        config = replace(worker_config(job, manifest, interval_s))
        spawner = ThreadSpawner(self._bucket)
        cpu_before, all_before = time.process_time(), self._engine_cpu_s()
        began = time.perf_counter()
        loop = WorkerLoop(
            config,
            spawner,
            lambda: KeptEngine(self._engine, self._ready),
            lambda: secrets.token_hex(16),
            random.Random(1),
        )
        delay_s = 0.0
        while loop.outcome is None:
            events = loop.engine.poll(delay_s) if loop.engine is not None else []
            delay_s = loop.tick(time.monotonic(), events)
        finalize(self._bucket, job, manifest, carried_type(job), place, secrets.token_hex(16))
        seconds = time.perf_counter() - began
        spawner.close()
        worker_cpu_s = time.process_time() - cpu_before
        counters = loop.counters
        return {
            "seconds": seconds,
            "tokens": counters.tokens_generated,
            "worker_cpu_s": worker_cpu_s,
            "cpu_s": worker_cpu_s + self._engine_cpu_s() - all_before,
            "checkpoints": counters.checkpoints,
        }

    def _engine_cpu_s(self) -> float:
        import psutil

        times = [
            child.cpu_times()
            for child in psutil.Process().children(recursive=True)
            if "bare.py" not in " ".join(child.cmdline())
        ]
        return sum(one.user + one.system for one in times)

    def stop(self) -> None:
        self._engine.stop()


def confidence_interval(values: Sequence[float], rng: random.Random, draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(draws * 0.025)], medians[int(draws * 0.975)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--seats", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bare", choices=["same", "default", "inline"], default="same")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between checkpoints")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)

    import pyarrow as pa
    import pyarrow.parquet as pq

    from shuntserve.sim.tiny_model import TinyModel, write_tiny_model

    setting = Setting(arguments.rows, arguments.seats, arguments.max_tokens, arguments.threads, arguments.bare)
    rng = random.Random(5)
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        directory = Path(name)
        model = TinyModel(
            hidden_size=512,
            layers=6,
            heads=8,
            kv_heads=4,
            head_dim=64,
            intermediate_size=1536,
            max_model_len=MAX_MODEL_LEN,
        )
        write_tiny_model(directory / "model", model)
        prompts = [[rng.randrange(10, 250) for _ in range(rng.randint(16, 128))] for _ in range(setting.rows)]
        lengths = [rng.randint(setting.max_tokens // 2, setting.max_tokens) for _ in prompts]
        params = [{"max_tokens": n, "temperature": 0.8, "seed": i, "ignore_eos": True} for i, n in enumerate(lengths)]
        rows_file = directory / "rows.parquet"
        table = {"prompt_token_ids": prompts, "sampling_params": [json.dumps(one) for one in params]}
        pq.write_table(pa.table(table), rows_file)

        run = Run(directory, setting, rows_file)
        bare = Bare(directory, setting, prompts, params)
        run.go(arguments.interval)
        pairs: list[dict[str, Any]] = []
        never: list[dict[str, float]] = []
        for index in range(arguments.pairs):
            if index % 2:
                ours, theirs = run.go(arguments.interval), bare.go()
            else:
                theirs, ours = bare.go(), run.go(arguments.interval)
            if index % 3 == 0:
                never.append(run.go(1e9))
            assert ours["tokens"] == theirs["tokens"] == sum(lengths)
            ratio = theirs["seconds"] / ours["seconds"]
            pairs.append({"run": ours, "bare": theirs, "ratio": ratio})
            print(f"pair {index + 1}: ratio {ratio:.3f}", file=sys.stderr, flush=True)
        run.stop()
        bare.stop()

    ratios = [pair["ratio"] for pair in pairs]
    low, high = confidence_interval(ratios, random.Random(1))
    bare_s = statistics.median(pair["bare"]["seconds"] for pair in pairs)
    with_cpu = statistics.median(pair["run"]["worker_cpu_s"] for pair in pairs)
    without_cpu = statistics.median(one["worker_cpu_s"] for one in never)
    all_cpu = statistics.median(pair["run"]["cpu_s"] for pair in pairs)
    result = {
        "pairs": len(pairs),
        "rows": setting.rows,
        "seats": setting.seats,
        "output_tokens": sum(lengths),
        "threads": setting.threads,
        "bare": setting.bare,
        "step_ms": round(1000 * bare_s * setting.seats / sum(lengths), 1),
        "bare_tok_s": round(sum(lengths) / bare_s, 1),
        "run_tok_s": round(statistics.median(pair["run"]["tokens"] / pair["run"]["seconds"] for pair in pairs), 1),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_ci95": [round(low, 4), round(high, 4)],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "checkpoint_interval_s": arguments.interval,
        "checkpoints_per_pass": statistics.median(pair["run"]["checkpoints"] for pair in pairs),
        "worker_cpu_s": round(with_cpu, 3),
        "worker_cpu_s_without_checkpoints": round(without_cpu, 3),
        "cpu_s": round(all_cpu, 3),
        "checkpoint_cpu_share": round(max(0.0, with_cpu - without_cpu) / all_cpu, 5),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:34} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
