"""Worker processes of one job on this machine: started, watched, buried, started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from shuntserve import telemetry
from shuntserve.core.restarts import Lives, RestartPolicy
from shuntserve.errors import InvalidInput, ShuntServeError, Unavailable
from shuntserve.job import watch
from shuntserve.job.worker_main import Exit
from shuntserve.store.port import Bucket

_ERROR_TAIL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How the workers of one job are started. `environments[i]` is added to the environment of worker i."""

    store_url: str
    job_id: str
    environments: Sequence[Mapping[str, str]]
    log_dir: Path
    log_level: str = "info"
    checkpoint_interval_s: float | None = None
    engine: str | None = None
    """`module:function`, when it is not vLLM."""
    engine_options: Mapping[str, object] = field(default_factory=dict)
    node: str | None = None
    """The machine of a fleet they are on."""

    def command(self, slot: int) -> list[str]:
        """The command line of one worker."""
        argv = [sys.executable, "-m", "shuntserve.job.worker_main", "--store", self.store_url, "--job", self.job_id]
        argv += ["--slot", str(slot), "--log-dir", str(self.slot_dir(slot)), "--log-level", self.log_level]
        if self.checkpoint_interval_s is not None:
            argv += ["--checkpoint-interval", str(self.checkpoint_interval_s)]
        if self.engine is not None:
            argv += ["--engine", self.engine]
        if self.node is not None:
            argv += ["--node", self.node]
        if self.engine_options:
            argv += ["--engine-options", json.dumps(dict(self.engine_options))]
        return argv

    def slot_dir(self, slot: int) -> Path:
        """Where a worker and its engine log."""
        return self.log_dir / f"worker-{slot}"

    def log_path(self, slot: int) -> Path:
        """Where a worker's log events go."""
        return self.slot_dir(slot) / "worker.jsonl"


@dataclass(slots=True)
class _Slot:
    """One of the job's worker processes, in all its lives."""

    number: int
    child: subprocess.Popen[bytes] | None = None
    unread: bytes = b""
    incarnations: list[str] = field(default_factory=list)
    lives: Lives = field(default_factory=Lives)
    start_at_s: float = 0.0
    closed: bool = False
    failure: ShuntServeError | None = None


class LocalWorkers:
    """Keeps the planned number of workers running until the job has no work left. Advanced by `tick`; never waits.

    A worker killed by a signal is declared gone at once, so that its chunks are free, and is started again as
    `RestartPolicy` says. One that says it cannot work here is not.
    """

    def __init__(self, bucket: Bucket, plan: WorkerPlan, policy: RestartPolicy | None = None) -> None:
        self._bucket = bucket
        self._plan = plan
        self._policy = policy or RestartPolicy()
        self._slots = [_Slot(number) for number in range(len(plan.environments))]
        self._to_bury: list[tuple[_Slot, list[str], int]] = []
        self._draining = False
        self.restarts = 0

    @property
    def running(self) -> int:
        """Worker processes that have not ended."""
        return sum(slot.child is not None for slot in self._slots)

    @property
    def finished(self) -> bool:
        """No worker runs and none will be started: all work is done, or drained, or every slot was given up."""
        return not self.running and not self._to_bury and (self._draining or all(slot.closed for slot in self._slots))

    @property
    def failures(self) -> tuple[ShuntServeError, ...]:
        """Why workers have given up."""
        return tuple(slot.failure for slot in self._slots if slot.failure is not None)

    @property
    def all_failed(self) -> bool:
        """No worker can work here."""
        return len(self.failures) == len(self._slots)

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of the running workers."""
        return tuple(slot.child.pid for slot in self._slots if slot.child is not None)

    def tick(self, now_s: float) -> None:
        """Take note of what has ended, bury, start what is due."""
        for slot in self._slots:
            if slot.child is not None:
                self._listen(slot)
                status = slot.child.poll()
                if status is not None:
                    self._listen(slot)
                    self._reap(slot, status)
        self._bury(now_s)
        if self._draining:
            return
        for slot in self._slots:
            if slot.child is None and not slot.closed and now_s >= slot.start_at_s:
                self._start(slot)

    def start_no_more(self) -> None:
        """There is no work left: a worker that has ended stays so."""
        for slot in self._slots:
            slot.closed = slot.closed or slot.child is None

    def drain(self) -> None:
        """Ask all workers to make everything durable and leave; none is started again."""
        self._draining = True
        self._signal(signal.SIGTERM)

    def flush(self) -> None:
        """Ask all workers to checkpoint at once and go on."""
        self._signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End all workers at once; their engines end with them."""
        self._draining = True
        self._signal(signal.SIGKILL)

    def end(self) -> None:
        """Kill what still runs and wait until it is gone."""
        self.kill()
        for slot in self._slots:
            if slot.child is not None:
                slot.child.wait()

    # -- one process -----------------------------------------------------------------------------------------------

    def _start(self, slot: _Slot) -> None:
        with self._open_log(slot) as log:
            # A session of its own: Ctrl-C reaches this process only, which then drains the workers in order. The pipe
            # to its standard input stays open as long as this process lives, whatever ends it.
            slot.child = subprocess.Popen(
                self._plan.command(slot.number),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self._plan.environments[slot.number]},
            )
        assert slot.child.stdout is not None
        os.set_blocking(slot.child.stdout.fileno(), False)
        slot.unread, slot.incarnations = b"", []

    def _open_log(self, slot: _Slot) -> IO[bytes]:
        path = self._plan.log_path(slot.number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("ab")
        except OSError as error:
            raise InvalidInput(str(path), error.strerror or "cannot be written", "free it or choose another") from error

    def _listen(self, slot: _Slot) -> None:
        """Read the names a worker gives itself."""
        assert slot.child is not None
        assert slot.child.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while read := os.read(slot.child.stdout.fileno(), 4096):
                slot.unread += read
        *lines, slot.unread = slot.unread.split(b"\n")
        slot.incarnations += [json.loads(line)["incarnation"] for line in lines]

    def _reap(self, slot: _Slot, status: int) -> None:
        assert slot.child is not None
        for pipe in (slot.child.stdin, slot.child.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        telemetry.emit(telemetry.Event.WORKER_EXITED, slot=slot.number, pid=slot.child.pid, status=status)
        slot.child = None
        match status:
            case Exit.DONE | Exit.DRAINED:
                slot.closed = True
            case Exit.FAILED:
                slot.closed = True
                slot.failure = self._last_error(slot)
            case _:
                self._to_bury.append((slot, slot.incarnations, status))

    def _bury(self, now_s: float) -> None:
        """Declare killed workers gone; as long as the bucket does not answer they wait here."""
        waiting, self._to_bury = self._to_bury, []
        for slot, incarnations, status in waiting:
            try:
                views = [watch.bury(self._bucket, self._plan.job_id, name) for name in incarnations]
            except Unavailable:
                self._to_bury.append((slot, incarnations, status))
                continue
            fruitful = any(
                view and (view.count("tokens_generated") or view.count("chunks_committed")) for view in views
            )
            slot.lives = slot.lives.ended(fruitful=fruitful)
            delay_s = self._policy.delay_s(slot.lives)
            if delay_s is None:
                slot.closed = True
                slot.failure = self._gave_up(slot, status)
            else:
                slot.start_at_s = now_s + delay_s
                self.restarts += not self._draining

    def _signal(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.child is not None and slot.child.poll() is None:
                slot.child.send_signal(number)

    # -- why it failed ---------------------------------------------------------------------------------------------

    def _last_error(self, slot: _Slot) -> ShuntServeError:
        """The reason a worker gave as it left; it is the last event of its log."""
        path = self._plan.log_path(slot.number)
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _ERROR_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        for line in reversed(lines):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return InvalidInput(f"worker {slot.number}", json.loads(line)["error"], f"its log is {path}")
        return Unavailable(f"worker {slot.number}", lines[-1] if lines else "ended by an error", f"its log is {path}")

    def _gave_up(self, slot: _Slot, status: int) -> ShuntServeError:
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        hint = "; the kernel kills so when memory runs out" if status == -signal.SIGKILL else ""
        return Unavailable(
            f"worker {slot.number}",
            f"ended {slot.lives.fruitless_in_a_row} times without generating a token (last by {how}{hint})",
            f"its log is {self._plan.log_path(slot.number)}",
        )
