"""An engine in processes of its own, behind the engine port: started, spoken to, watched, and ended for certain.

    worker ── socket pair, frames ──► host (this module's child) ──► whatever the backend starts (vLLM's EngineCore,
    …)

The child leads a session of its own, so everything below it can be found and killed by session id, orphans included.
The parent never blocks: it reads what the socket holds and looks at the clock. Three ways to lose an engine are told
apart (`LossKind`): it says why itself or exits by a signal or status; it makes no progress for too long; or somebody
killed or stopped it from outside, which counts against no row.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import shuntserve
from shuntserve.engine import frames
from shuntserve.engine.logtail import with_cause
from shuntserve.engine.oom import oom_kills
from shuntserve.engine.port import (
    EngineEvent,
    EngineLost,
    LossKind,
    SequenceRequest,
)
from shuntserve.engine.session import Session
from shuntserve.errors import Corrupt, InvalidInput, Unavailable

_READ_BYTES = 1 << 20
_SILENCE_SHARE = 0.8
"""Of `hang_s`, how much silence is allowed; the rest is for noticing and killing."""
_OBSERVER_GAP_S = 1.0
"""Of a longer time between two polls no more than this counts as silence: the whole machine may have been paused."""
_STOP_GRACE_S = 3.0
_LAST_WORDS_S = 1.0
_BURIAL_S = 30.0


class EngineProcess:
    """One engine life behind `engine.port.Engine`. Not thread-safe: one thread calls it.

    `backend` names the class to host ("module:Class", see `engine.backend`), `options` goes to it unread. Standard
    output and error of all its processes are appended to `log_path`. A hang is reported within `hang_s`, unless a
    single step of the engine is known to take long (`Progress.patience_s`). Call `start` from a thread that outlives
    the engine: the kernel ends the engine with that thread.
    """

    def __init__(
        self,
        backend: str,
        options: Mapping[str, Any],
        log_path: Path,
        *,
        hang_s: float = 10.0,
        start_timeout_s: float = 1800.0,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._options = dict(options)
        self._log_path = log_path
        self._allowed_silence_s = hang_s * _SILENCE_SHARE
        self._start_timeout_s = start_timeout_s
        self._environment = dict(environment or {})
        self._clock = clock

        self._child: subprocess.Popen[bytes] | None = None
        self._session: Session | None = None
        self._socket: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._splitter = frames.FrameSplitter()
        self._unsent = bytearray()
        self._events: list[EngineEvent] = []
        self._in_flight: set[str] = set()
        self._early: list[SequenceRequest] = []
        """Submitted before the engine was ready."""
        self._ready = False
        self._loss: EngineLost | None = None
        """Decided, but perhaps not yet reported: that waits until no process is left."""
        self._over = False
        self._steps = -1
        self._patience_s = 0.0
        self._progress_at_s = 0.0
        self._polled_at_s = 0.0
        self._oom_kills_before = 0

    # --- the port

    def start(self) -> None:
        """Begin starting; returns at once. Raises InvalidInput when the log cannot be written."""
        if self._child is not None:
            raise RuntimeError("an EngineProcess is started once")
        ours, theirs = socket.socketpair()
        with contextlib.closing(theirs), self._open_log() as log:
            self._oom_kills_before = oom_kills()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "shuntserve.engine.host", f"--fd={theirs.fileno()}", f"--parent={os.getpid()}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=self._child_environment(),
            )
        ours.setblocking(False)
        self._socket = ours
        self._selector.register(ours, selectors.EVENT_READ)
        self._session = Session(self._child.pid)
        self._progress_at_s = self._polled_at_s = self._clock()
        self._send(frames.Start(self._backend, self._options))

    def submit(self, requests: Sequence[SequenceRequest]) -> None:
        if self._loss is not None or self._over:
            return
        if not self._ready:
            self._early.extend(requests)
            return
        if not self._in_flight:
            self._progress_at_s = self._clock()
        self._in_flight.update(request.seq_id for request in requests)
        self._send(frames.Submit(list(requests)))

    def abort(self, seq_ids: Sequence[str]) -> None:
        unwanted = set(seq_ids)
        self._early = [request for request in self._early if request.seq_id not in unwanted]
        known = [seq_id for seq_id in seq_ids if seq_id in self._in_flight]
        self._in_flight.difference_update(known)
        if known and self._loss is None:
            self._send(frames.Abort(known))

    def poll(self, timeout_s: float) -> list[EngineEvent]:
        deadline_s = self._clock() + timeout_s
        while True:
            self._turn(max(0.0, deadline_s - self._clock()))
            if self._events or self._clock() >= deadline_s:
                events, self._events = self._events, []
                return events

    def stop(self) -> None:
        """End the engine and all its processes; returns when none is left. Raises Unavailable when the kernel does not
        let go of one within half a minute (a stuck device driver)."""
        if self._child is None or self._session is None:
            self._over = True
            return
        if self._loss is None and self._ready:
            self._send(frames.Stop())
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_STOP_GRACE_S)
        self._over = True
        if not self._session.end(_BURIAL_S):
            raise Unavailable("engine process", f"{self._session.members()} outlive SIGKILL", "reboot the machine")
        self._child.wait()
        self._close()

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Every live process of this engine, the host first. Empty before `start` and after the end."""
        return self._session.members() if self._session is not None else ()

    # --- one turn: read, write, judge

    def _turn(self, timeout_s: float) -> None:
        if self._over or self._child is None:
            if timeout_s:
                self._selector.select(timeout_s)  # nothing is registered: waits as promised
            return
        if self._loss is not None:
            self._bury(timeout_s)
            return
        self._progress_at_s += max(0.0, self._clock() - self._polled_at_s - _OBSERVER_GAP_S)
        self._exchange(min(timeout_s, frames.PULSE_S))
        self._polled_at_s = self._clock()
        if self._loss is None:
            self._judge(self._polled_at_s)

    def _judge(self, now_s: float) -> None:
        """Decide whether the engine is lost, from what has been heard so far."""
        silence_s = now_s - self._progress_at_s
        if not self._ready:
            if silence_s > self._start_timeout_s:
                self._lose(EngineLost(LossKind.HUNG, f"not ready within {self._start_timeout_s:g} s"))
        elif self._in_flight and silence_s > max(self._allowed_silence_s, self._patience_s):
            assert self._session is not None
            if self._session.stopped():
                self._lose(EngineLost(LossKind.KILLED, "stopped by a signal (SIGSTOP) and therefore ended"))
            else:
                self._lose(EngineLost(LossKind.HUNG, f"no progress for {silence_s:.1f} s"))

    def _exchange(self, timeout_s: float) -> None:
        """Write what waits, read what has come."""
        assert self._socket is not None
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._socket, wanted)
        for _, ready in self._selector.select(timeout_s):
            if ready & selectors.EVENT_WRITE:
                self._flush()
            if ready & selectors.EVENT_READ:
                self._read()

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose_by_exit()
            return
        try:
            for body in self._splitter.feed(data):
                self._receive(frames.decode_from_host(body))
        except Corrupt as error:
            self._lose(EngineLost(LossKind.CRASHED, str(error)))

    def _receive(self, frame: frames.FromHost) -> None:
        if self._loss is not None:
            return
        now_s = self._clock()
        match frame:
            case frames.Events(deltas, refused):
                self._progress_at_s = now_s
                self._events.extend(deltas)
                self._events.extend(refused)
                self._in_flight.difference_update(d.seq_id for d in deltas if d.finish_reason is not None)
                self._in_flight.difference_update(r.seq_id for r in refused)
            case frames.Pulse(steps, patience_s):
                self._patience_s = patience_s
                if steps != self._steps:
                    self._steps = steps
                    self._progress_at_s = now_s
            case frames.Ready(ready):
                self._ready = True
                self._progress_at_s = now_s
                self._events.append(ready)
                early, self._early = self._early, []
                if early:
                    self.submit(early)
            case frames.Lost(lost):
                self._lose(lost)

    # --- to the host

    def _send(self, frame: frames.ToHost) -> None:
        self._unsent += frames.encode(frame)
        self._flush()

    def _flush(self) -> None:
        assert self._socket is not None
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent[:_READ_BYTES])]
        except BlockingIOError:
            return  # the rest goes with a later poll
        except OSError:
            self._unsent.clear()  # the reading side tells how it ended

    # --- the end

    def _lose_by_exit(self) -> None:
        """The host hung up without last words: its exit says why."""
        assert self._child is not None
        try:
            status = self._child.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self._lose(EngineLost(LossKind.CRASHED, "closed its connection"))
            return
        self._lose(loss_by_exit_status("engine host", status))

    def _lose(self, lost: EngineLost) -> None:
        self._loss = self._explained(lost)
        assert self._session is not None
        self._session.kill()

    def _explained(self, lost: EngineLost) -> EngineLost:
        """`lost`, with what the kernel and the log know about it."""
        if lost.kind is LossKind.INVALID:
            return lost
        kind, detail = lost.kind, lost.detail
        if kind is LossKind.KILLED and oom_kills() > self._oom_kills_before:
            kind, detail = LossKind.CRASHED, f"{detail}; the kernel killed for want of memory"
        if kind is LossKind.CRASHED:
            detail = with_cause(detail, self._log_path)
        return EngineLost(kind, f"{detail} (log: {self._log_path})")

    def _bury(self, timeout_s: float) -> None:
        """Report the loss once no process is left."""
        assert self._session is not None
        assert self._child is not None
        if self._session.end(timeout_s):
            self._child.wait()
            self._close()
            self._over = True
            assert self._loss is not None
            self._events.append(self._loss)

    def _close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._socket)
            self._socket.close()

    # --- surroundings of the child

    def _open_log(self) -> IO[bytes]:
        try:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            return self._log_path.open("ab")
        except OSError as error:
            cause = error.strerror or str(error)
            raise InvalidInput(f"engine log {self._log_path}", cause, "choose another directory") from error

    def _child_environment(self) -> dict[str, str]:
        """Ours, with this package importable even from a checkout that is not installed."""
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1", **self._environment}
        home = str(Path(shuntserve.__file__).resolve().parents[1])
        if home not in sysconfig.get_paths().values():
            entries = [home, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
            environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(entries))
        return environment


def loss_by_exit_status(name: str, status: int) -> EngineLost:
    """What an exit status (negative: a signal, as `subprocess` and `multiprocessing` report it) says about a loss."""
    if status >= 0:
        return EngineLost(LossKind.CRASHED, f"{name} exited with status {status}")
    sent = -status
    kind = LossKind.KILLED if sent in _OUTSIDE_SIGNALS else LossKind.CRASHED
    return EngineLost(kind, f"{name} ended by {signal.Signals(sent).name}")


_OUTSIDE_SIGNALS = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""Sent by people, supervisors and kernels; an engine that fails by itself ends by SEGV, ABRT, BUS, FPE or ILL."""
