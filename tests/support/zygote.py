"""Engines forked from a process that has imported vLLM already: many engines without many times the import.

What runs is the product's backend, in a session of its own, only not behind an engine process. For tests of what
engines compute; whoever tests how they live and die starts `EngineProcess`es.

Run as a program this is the process that is forked: a line of JSON in for each engine, a line out when it is done.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from shuntserve.engine.port import Delta, SequenceRequest

ROOT = Path(__file__).parents[2]
READY = "ready"


class EngineFailed(Exception):
    """With the end of what it said."""


class Zygote:
    """Starts engines one after the other; each runs its rows and ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._child: subprocess.Popen[str] | None = None
        self._engines = 0

    def run(
        self, options: dict[str, Any], rows: Sequence[SequenceRequest], times: int = 1
    ) -> list[dict[str, list[int]]]:
        """The token ids of each row, so many times over in one engine; raises when the engine fails, with its log."""
        child = self._started()
        self._engines += 1
        log_path = self.last_log
        result_path = log_path.with_suffix(".json")
        order = {
            "options": options,
            "rows": [asdict(row) for row in rows],
            "times": times,
            "log": str(log_path),
            "result": str(result_path),
        }
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(order) + "\n")
        child.stdin.flush()
        status = int(child.stdout.readline())
        if status != 0:
            raise EngineFailed(f"engine of {options} ended with {status}: {log_path.read_text()[-4000:]}")
        outputs: list[dict[str, list[int]]] = json.loads(result_path.read_text())
        return outputs

    @property
    def last_log(self) -> Path:
        """What the last engine said."""
        return self._directory / f"engine-{self._engines}.log"

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
            with (self._directory / "zygote.log").open("wb") as log:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "tests.support.zygote"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment,
                    start_new_session=True,
                )  # fmt: skip
            assert self._child.stdout is not None
            said = self._child.stdout.readline().strip()
            assert said == READY, (self._directory / "zygote.log").read_text()[-4000:]
        return self._child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from shuntserve.engine.vllm_options import VllmOptions, prepare_environment

    prepare_environment(VllmOptions(model="", cpu_threads=1))
    import vllm.v1.engine.async_llm
    import vllm.v1.executor.multiproc_executor
    import vllm.v1.worker.cpu_worker  # noqa: F401

    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(live(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


def live(order: dict[str, Any]) -> int:
    """One engine, from start to end."""
    from shuntserve.engine.lifeline import die_with_parent
    from shuntserve.engine.session import kill_below

    die_with_parent()
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        outputs = asyncio.run(generate(order))
        Path(order["result"]).write_text(json.dumps(outputs))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        kill_below()
    return 0


async def generate(order: dict[str, Any]) -> list[dict[str, list[int]]]:
    from shuntserve.engine.vllm_backend import VllmBackend

    rows = [SequenceRequest(**row) for row in order["rows"]]
    outputs: dict[str, list[int]] = {}
    unfinished: set[str] = set()
    done = asyncio.Event()

    def took(event: Any) -> None:
        assert isinstance(event, Delta), event
        outputs[event.seq_id] += event.token_ids
        if event.finish_reason is not None:
            unfinished.discard(event.seq_id)
            if not unfinished:
                done.set()

    backend = VllmBackend(order["options"], took)
    await backend.start()
    passes = []
    for _ in range(order["times"]):
        outputs = {row.seq_id: [] for row in rows}
        unfinished = set(outputs)
        done.clear()
        for row in rows:
            backend.submit(row)
        lost = asyncio.ensure_future(backend.lost())
        ended = asyncio.ensure_future(done.wait())
        await asyncio.wait((lost, ended), return_when=asyncio.FIRST_COMPLETED)
        assert done.is_set(), lost.result()
        lost.cancel()
        passes.append(outputs)
    return passes


if __name__ == "__main__":
    main()
