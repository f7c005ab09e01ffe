"""Jobs under SIGKILL: real processes, a real store, and a check of every row against an undisturbed run.

`KillTrial` runs `shuntserve run` on planted input, kills its processes at seeded random moments, runs the command
again whenever it died, and compares what comes out with what an undisturbed run of the same job gave."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from shuntserve.sim.tiny_model import TinyModel, write_tiny_model
from tests.support import markers

VICTIMS = ("worker", "engine", "command", "all")
IN_THE_MIDDLE = 0.75
"""Share of kills that wait until some engine is generating and some of its output is durable; the others strike at any
time, start-up included."""
MAX_MODEL_LEN = 512


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """How the workers' engines are made, and how patient the killer is."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    between_kills_s: tuple[float, float]
    deck: tuple[int, ...]
    """How often each kind of victim is killed before they all begin anew, in another order."""
    rows: int
    max_tokens: int
    undisturbed_workers: int
    crashing: Mapping[str, Any]
    """Engine options with which the row that holds the marker crashes the engine, every time."""


STANDIN = EngineChoice(
    "standin",
    (
        "--worker-engine=shuntserve.wiring:standin_engine",
        '--worker-engine-options={"seats": 8, "step_s": 0.01, "stream_interval": 2}',
    ),
    {},
    between_kills_s=(0.05, 1.0),
    deck=(5, 5, 2, 1),
    rows=240,
    max_tokens=200,
    undisturbed_workers=3,
    crashing={"seats": 8, "step_s": 0.01, "stream_interval": 2, "crash_token": markers.ABORT},
)
VLLM = EngineChoice(
    "vllm",
    (
        "--engine=enforce_eager=true",
        "--engine=max_num_seqs=16",
        "--engine=dtype=float32",
        '--worker-engine-options={"cpu_threads": 1}',
    ),
    {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    between_kills_s=(0.1, 1.5),
    deck=(1, 1, 1, 1),
    rows=96,
    max_tokens=300,
    undisturbed_workers=1,
    crashing={"cpu_threads": 1, "scheduler_cls": markers.FAULTY_SCHEDULER},
)
ENGINES = {choice.name: choice for choice in (STANDIN, VLLM)}


@dataclass(slots=True)
class Kills:
    """What was killed so far."""

    by_victim: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))

    @property
    def total(self) -> int:
        return sum(self.by_victim.values())


class KillTrial:
    """One input, one undisturbed run, and any number of rounds with kills or crashes."""

    def __init__(
        self, directory: Path, engine: EngineChoice, seed: int, *, workers: int = 2, rows: int | None = None
    ) -> None:
        self.directory = directory
        self.engine = engine
        self.rng = random.Random(seed)
        self.workers = workers
        self.kills = Kills()
        self._deck: list[str] = []
        self.interruptions = 0
        self.resumed_rows = 0
        directory.mkdir(parents=True, exist_ok=True)
        self.model = write_tiny_model(directory / "model", TinyModel())
        self.input, self.bad_rows, self.marked_row = self._write_input(rows or engine.rows)
        self.expected = self._undisturbed()

    # -- input -----------------------------------------------------------------------------------------------------

    def _write_input(self, rows: int) -> tuple[Path, dict[int, str], int]:
        """Prompts, half of them greedy, half sampled; bad rows planted among them, and one that only a doctored engine
        minds. Returns the file, row index → reject code, and the index of the marked row."""
        rng = self.rng
        words = ("river", "stone", "window", "signal", "early", "machine", "garden", "between", "nothing", "letter")
        records: list[dict[str, Any]] = []
        for index in range(rows):
            sampling = {"temperature": 0.0} if rng.random() < 0.5 else {"temperature": 0.9, "top_p": 0.95}
            records.append(
                {
                    "request_id": f"row-{index:05d}",
                    "prompt": " ".join(rng.choices(words, k=rng.randint(2, 40))),
                    "max_tokens": rng.randint(self.engine.max_tokens // 8, self.engine.max_tokens),
                    "sampling_params": json.dumps(sampling | {"ignore_eos": self.engine.name == "vllm"}),
                    "note": f"carried-{index}",
                }
            )
        bad = dict(
            zip(
                rng.sample(range(2, rows), 4),
                ("empty_prompt", "prompt_too_long", "unknown_parameter", "duplicate_id"),
                strict=True,
            )
        )
        for index, code in bad.items():
            match code:
                case "empty_prompt":
                    records[index]["prompt"] = ""
                case "prompt_too_long":
                    records[index]["prompt"] = "river " * MAX_MODEL_LEN * 2
                case "unknown_parameter":
                    records[index]["sampling_params"] = '{"temprature": 1}'
                case "duplicate_id":
                    records[index]["request_id"] = records[next(i for i in range(index) if i not in bad)]["request_id"]
        marked = next(index for index in range(rows // 2 - 4, rows) if index not in bad)
        records[marked]["prompt"] = markers.marked_text(records[marked]["prompt"], markers.ABORT)
        path = self.directory / "prompts.parquet"
        pq.write_table(pa.Table.from_pylist(records), path)
        return path, bad, marked

    @property
    def marked_id(self) -> str:
        return f"row-{self.marked_row:05d}"

    # -- the command -----------------------------------------------------------------------------------------------

    def command(self, store: str, output: str, *more: str) -> list[str]:
        """`shuntserve run` on the planted input."""
        return [
            str(Path(sys.executable).with_name("shuntserve")),
            "run",
            str(self.input),
            f"--model={self.model}",
            f"--store={self.directory / store}",
            f"--output={self.directory / output}",
            f"--workers={self.workers}",
            f"--engine=max_model_len={MAX_MODEL_LEN}",
            "--seed=7",
            "--max-reject-fraction=1",
            "--max-length-finish-fraction=1",
            "--checkpoint-interval=0.5",
            "--lease=3",
            "--json",
            *self.engine.arguments,
            *more,
        ]

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """The command in a session of its own, its standard error in a log."""
        environment = {**os.environ, **self.engine.environment, "XDG_DATA_HOME": str(self.directory / "data")}
        with (self.directory / "commands.log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True
            )

    def _undisturbed(self) -> dict[str, dict[str, Any]]:
        workers = f"--workers={self.engine.undisturbed_workers}"
        with self.start(self.command("store-undisturbed", "out-undisturbed", workers)) as child, _ended(child):
            child.communicate()
        if child.returncode != 0:
            raise AssertionError(f"the undisturbed run failed with {child.returncode}: {self.log_tail()}")
        return self.outputs("out-undisturbed")

    def log_tail(self) -> str:
        """The end of what the commands said."""
        return (self.directory / "commands.log").read_text()[-4000:]

    def outputs(self, name: str) -> dict[str, dict[str, Any]]:
        """Rows of a data directory by id; an id that occurs twice is an error."""
        table = ds.dataset(self.directory / name / "data", format="parquet").to_table()
        rows: dict[str, dict[str, Any]] = {}
        for row in table.to_pylist():
            if row["request_id"] in rows:
                raise AssertionError(f"{row['request_id']} occurs twice in {name}/data")
            rows[row["request_id"]] = row
        return rows

    # -- crashes ---------------------------------------------------------------------------------------------------

    def round_of_crashes(self, name: str) -> dict[str, Any]:
        """One job to its end on engines that the marked row crashes; returns the command's summary."""
        return self.round(name, 0, f"--worker-engine-options={json.dumps(self.engine.crashing)}")

    # -- kills -----------------------------------------------------------------------------------------------------

    def round(self, name: str, budget: int, *more: str) -> dict[str, Any]:
        """One job to its end, with up to `budget` kills on the way; returns the last command's summary."""
        command = self.command(f"store-{name}", f"out-{name}", f"--rerun={name}", *more)
        before = self.kills.total
        with contextlib.ExitStack() as started:

            def start() -> subprocess.Popen[bytes]:
                child = started.enter_context(self.start(command))
                started.enter_context(_ended(child))
                return child

            child = start()
            next_kill_s = time.monotonic() + self._wait_s()
            victim, in_the_middle = self._choose()
            while (status := child.poll()) not in (0, 3):
                if status is not None:
                    if status != -signal.SIGKILL:
                        raise AssertionError(f"the command failed with {status}: {self.log_tail()}")
                    child = start()
                due = time.monotonic() >= next_kill_s and self.kills.total - before < budget
                if due and (not in_the_middle or self._generating(name)) and self._kill(victim, child):
                    victim, in_the_middle = self._choose()
                    next_kill_s = time.monotonic() + self._wait_s()
                time.sleep(0.05)
            assert child.stdout is not None
            summary: dict[str, Any] = json.loads(child.stdout.read())
        self.interruptions += summary["interruptions"]
        self.resumed_rows += summary["resumed_rows"]
        return summary

    def _wait_s(self) -> float:
        return self.rng.uniform(*self.engine.between_kills_s)

    def _choose(self) -> tuple[str, bool]:
        if not self._deck:
            self._deck = self.rng.sample(VICTIMS, sum(self.engine.deck), counts=self.engine.deck)
        return self._deck.pop(), self.rng.random() < IN_THE_MIDDLE

    def _generating(self, name: str) -> bool:
        """Whether a worker that still lives has said that its engine holds sequences, and that it has durable ones."""
        for path in (self.directory / f"store-{name}").glob("jobs/*/workers/*.json"):
            with contextlib.suppress(OSError, ValueError):
                worker = json.loads(path.read_text())
                facts = worker["facts"]
                under_way = facts.get("in_engine") and facts.get("tokens_durable")
                if under_way and not worker["gone"] and psutil.pid_exists(facts["pid"]):
                    return True
        return False

    def _kill(self, victim: str, child: subprocess.Popen[bytes]) -> bool:
        """Kill it if there is one; False when it has not been started yet."""
        try:
            command = psutil.Process(child.pid)
            tree = command.children(recursive=True)
        except psutil.NoSuchProcess:
            return False
        match victim:
            case "worker":
                targets = [process for process in tree if _runs(process, "shuntserve.job.worker_main")]
            case "engine":
                targets = _engine_processes(tree)
            case "command":
                targets = [command]
            case _:
                targets = [command, *tree]
        targets = [process for process in targets if _lives(process)]
        if not targets:
            return False
        if victim in ("worker", "engine"):
            targets = [self.rng.choice(targets)]
        for process in targets:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.kills.by_victim[victim] += 1
        return True

    # -- the verdict -----------------------------------------------------------------------------------------------

    def check(self, name: str, *, crashed: bool = False) -> None:
        """Every valid row once with the undisturbed run's text; exactly the planted bad rows as rejects, and when the
        marked row `crashed` its engines, that one."""
        got = self.outputs(f"out-{name}")
        ids = self.expected.keys() - ({self.marked_id} if crashed else set())
        assert got.keys() == ids, f"ids differ: {sorted(got.keys() ^ ids)[:10]}"
        for request_id, row in got.items():
            expected = self.expected[request_id]
            for column in ("output_text", "finish_reason", "completion_tokens", "prompt_tokens", "note"):
                assert row[column] == expected[column], f"{request_id}: {column} differs from the undisturbed run's"
        rejects = ds.dataset(self.directory / f"out-{name}" / "rejects", format="parquet").to_table().to_pylist()
        expected_rejects = {**self.bad_rows, **({self.marked_row: "engine_crash"} if crashed else {})}
        assert {row["source_row"]: row["code"] for row in rejects} == expected_rejects
        assert len(rejects) == len(expected_rejects)
        manifest = json.loads((self.directory / f"out-{name}" / "_manifest.json").read_text())
        assert manifest["state"] == "COMPLETED_WITH_REJECTS"

    def survivors(self, within_s: float = 60.0) -> list[str]:
        """Command lines of processes of this trial that still run when everything has had time to notice its end."""
        deadline_s = time.monotonic() + within_s
        while True:
            left = [process for process in psutil.process_iter() if self._writes_here(process)]
            if not left or time.monotonic() >= deadline_s:
                return [" ".join(process.cmdline()) for process in left if _lives(process)]
            time.sleep(0.2)

    def _writes_here(self, process: psutil.Process) -> bool:
        """Whether its output goes to this trial's directory: true of all its processes, whatever they call themselves,
        and of nobody else's."""
        with contextlib.suppress(OSError):
            return Path(os.readlink(f"/proc/{process.pid}/fd/2")).is_relative_to(self.directory)
        return False


@contextlib.contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """The child does not outlive the block; in a trial that goes well it has ended before."""
    try:
        yield
    finally:
        child.kill()


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _runs(process: psutil.Process, module: str) -> bool:
    try:
        return module in process.cmdline()
    except psutil.Error:
        return False


def _engine_processes(tree: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Engine hosts and everything below them (vLLM's EngineCore)."""
    hosts = [process for process in tree if _runs(process, "shuntserve.engine.host")]
    below: list[psutil.Process] = []
    for host in hosts:
        with contextlib.suppress(psutil.NoSuchProcess):
            below += host.children(recursive=True)
    return hosts + below
