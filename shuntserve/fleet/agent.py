"""The node agent: one per machine; runs the workers the newest plan gives it and reports how the machine is.

    newest plan ─► workers of this node            interruption notice ─► report, checkpoint at once, drain in time
    spending lease ─► drain and shut down          rebalance recommendation ─► report

Advanced by `tick`. Bucket work runs as procedures beside it, the metadata endpoint is read on a thread of its own, so
that neither can keep the agent from acting on the other. When it has left in order the machine shuts down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shuntserve import telemetry
from shuntserve.core.desired import Desired, Pipeline
from shuntserve.core.spending import SpendingWatch
from shuntserve.errors import NotFound, ShuntServeError
from shuntserve.fleet.imds import Warnings
from shuntserve.job import claims
from shuntserve.job.ops import Get, Head, ListKeys, Procedure, Put
from shuntserve.job.worker_config import Spawner
from shuntserve.store import keys

TICK_S = 0.1
DRAIN_BEFORE_S = 30.0
"""So long before an announced interruption the workers are told to leave; half of a shorter notice."""
START_AGAIN_S = 10.0
"""Workers that left of their own accord (they saw a pause, or no work) are started again after this time, as long as
the plan wants them: the pause may have been taken back."""
KILL_AFTER_S = 30.0
"""Workers that have not drained by then are killed; what they had checkpointed stays."""


class Workers(Protocol):
    """The worker processes of one pipeline on this node (`job.local.LocalWorkers`)."""

    @property
    def finished(self) -> bool: ...

    @property
    def all_failed(self) -> bool: ...

    @property
    def failures(self) -> tuple[ShuntServeError, ...]: ...

    @property
    def running(self) -> int: ...

    def tick(self, now_s: float) -> None: ...

    def flush(self) -> None: ...

    def drain(self) -> None: ...

    def kill(self) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What one agent is told."""

    job_id: str
    node: str
    incarnation: str
    spending_lease_s: float
    report_interval_s: float = 3.0
    look_interval_s: float = 1.0


@dataclass(slots=True)
class _Errand:
    """One procedure, repeated at intervals, never twice at once."""

    interval_s: float
    due_s: float = 0.0
    busy: bool = False

    def begin(self, now_s: float) -> bool:
        """Whether it is to be done now."""
        if self.busy or now_s < self.due_s:
            return False
        self.busy = True
        return True

    def end(self, now_s: float) -> None:
        self.busy, self.due_s = False, now_s + self.interval_s


@dataclass(frozen=True, slots=True)
class _SeenPlan:
    key: str | None = None
    epoch: int = -1
    desired: Desired = Desired()  # noqa: RUF009 -- an immutable value


class AgentLoop:
    """One agent. `tick` until `over`."""

    def __init__(
        self,
        config: AgentConfig,
        spawner: Spawner,
        start_workers: Callable[[Pipeline], Workers],
        warnings: Callable[[], Warnings],
        facts: Mapping[str, Any],
        spending: SpendingWatch,
        keep_spending: Callable[[SpendingWatch], None],
    ) -> None:
        self.over = False
        self._config = config
        self._spawner = spawner
        self._start_workers = start_workers
        self._warnings = warnings
        self._facts = dict(facts)
        self._now_s = 0.0
        self._progress = 0
        self._plan = _SeenPlan()
        self._spending = replace(spending, lease_s=config.spending_lease_s)
        self._keep_spending = keep_spending
        self._running: tuple[Pipeline, Workers] | None = None
        self._leaving: str | None = None
        self._kill_at_s: float | None = None
        self._start_at_s = -math.inf
        self._told = Warnings()
        self._drain_at_unix_s = math.inf
        self._signed_off = False
        self._failure: str | None = None
        self._report = _Errand(config.report_interval_s)
        self._look = _Errand(config.look_interval_s)
        self._lease = _Errand(min(config.look_interval_s * 5, config.spending_lease_s / 5))

    def leave(self, why: str) -> None:
        """Drain, sign off, and be over. May be called from a signal handler."""
        if self._leaving is None:
            self._leaving = why

    def end(self) -> None:
        """However the agent is left, no worker stays behind."""
        if self._running is not None:
            self._running[1].end()

    def tick(self, now_s: float, now_unix_s: float) -> float:
        """Advance; returns seconds until the next tick."""
        self._now_s = now_s
        self._spawner.deliver()
        self._heed_warnings(now_unix_s)
        if self._spending.ended(now_s):
            self.leave("the spending lease has ended")
        self._read_plan()
        self._read_spending()
        self._keep_workers(now_s)
        self._tell(now_s, now_unix_s)
        return TICK_S

    # -- what comes from outside -------------------------------------------------------------------------------------

    def _heed_warnings(self, now_unix_s: float) -> None:
        warnings = self._warnings()
        if warnings != self._told:
            if warnings.interruption_unix_s is not None and self._told.interruption_unix_s is None:
                in_s = warnings.interruption_unix_s - now_unix_s
                telemetry.emit(telemetry.Event.INTERRUPTION_NOTICED, node=self._config.node, in_s=round(in_s, 1))
                self._drain_at_unix_s = warnings.interruption_unix_s - min(DRAIN_BEFORE_S, in_s / 2)
                if self._running is not None:
                    self._running[1].flush()
            if warnings.rebalance and not self._told.rebalance:
                telemetry.emit(telemetry.Event.REBALANCE_RECOMMENDED, node=self._config.node)
            self._told = warnings
            self._report.due_s = 0.0
        if warnings.interruption_unix_s is not None and now_unix_s >= self._drain_at_unix_s:
            self.leave("the machine will be taken")

    def _read_plan(self) -> None:
        if not self._look.begin(self._now_s):
            return

        def done(seen: _SeenPlan | None, error: ShuntServeError | None) -> None:
            self._look.end(self._now_s)
            if self._tolerate(error, "plan") and seen is not None:
                self._plan = seen
                if self._config.node in seen.desired.leave:
                    self.leave("the plan says so")

        self._spawner.spawn(_newest_plan(self._config.job_id, self._plan), done)

    def _read_spending(self) -> None:
        if not self._lease.begin(self._now_s):
            return
        asked_s = self._now_s

        def done(seen: tuple[str | None, bool] | None, error: ShuntServeError | None) -> None:
            self._lease.end(self._now_s)
            if not self._tolerate(error, "spending lease") or seen is None:
                return
            renewal, written_off = seen
            if written_off:  # no controller looks at this machine any more
                self.leave("its launch is noted as ended")
            if renewal is not None:
                self._spending = self._spending.seen(renewal, asked_s)
                self._keep_spending(self._spending)

        self._spawner.spawn(_may_run(self._config.job_id, self._config.node), done)

    # -- workers -----------------------------------------------------------------------------------------------------

    def _keep_workers(self, now_s: float) -> None:
        mine = self._plan.desired.of_node(self._config.node)
        wanted = mine[0] if mine and self._leaving is None else None
        try:
            if self._running is not None:
                self._tend(*self._running, wanted, now_s)
            if self._running is None and wanted is not None and now_s >= self._start_at_s and self._failure is None:
                self._running = (wanted, self._start_workers(wanted))
        except ShuntServeError as error:  # they cannot run on this machine: whoever planned it has to know
            self._fail(str(error))
            self.end()
            self._running, self._kill_at_s = None, None

    def _tend(self, pipeline: Pipeline, workers: Workers, wanted: Pipeline | None, now_s: float) -> None:
        if pipeline != wanted and self._kill_at_s is None:
            telemetry.emit(telemetry.Event.DRAIN_STARTED, node=self._config.node, reason=self._leaving or "new plan")
            workers.drain()
            self._kill_at_s = now_s + KILL_AFTER_S
        if self._kill_at_s is not None and now_s >= self._kill_at_s:
            workers.kill()
        workers.tick(now_s)
        if workers.all_failed:
            self._fail(str(workers.failures[0]))
        if workers.finished and (self._kill_at_s is not None or not workers.all_failed):
            workers.end()
            if self._kill_at_s is None:
                self._start_at_s = now_s + START_AGAIN_S
            self._running, self._kill_at_s = None, None

    def _fail(self, why: str) -> None:
        if self._failure is None:
            self._failure = why
            self._report.due_s = 0.0

    # -- what it tells -----------------------------------------------------------------------------------------------

    def vitals(self) -> dict[str, Any]:
        """What its metrics show (`shuntserve.metrics.tell_agent`)."""
        left_s = self._spending.lease_s - (self._now_s - self._spending.since_s)
        return {
            "workers": self._running[1].running if self._running is not None else 0,
            "notice": self._told.interruption_unix_s is not None,
            "rebalance": self._told.rebalance,
            "spending_lease_s": max(0.0, left_s),
        }

    @property
    def state(self) -> str:
        """One word for what this node is doing."""
        if self._leaving is not None:
            return "draining"
        return "ready"

    def _tell(self, now_s: float, now_unix_s: float) -> None:
        """Report at intervals; the last report says that this node is gone, and ends the agent."""
        last = self._leaving is not None and self._running is None
        if last and not self._report.busy:
            self._report.due_s = 0.0
        if not self._report.begin(now_s):
            return
        self._progress += 1

        def done(_: None, error: ShuntServeError | None) -> None:
            self._report.end(self._now_s)
            told = self._tolerate(error, "report")
            if last and (told or self._signed_off):
                self.over = True
            self._signed_off = last  # a bucket that is out does not hold a machine that costs money

        pipeline = self._running[0] if self._running is not None else None
        facts = {
            **self._facts,
            "state": self.state,
            "told_unix_s": now_unix_s,
            "leaving": self._leaving,
            "notice_unix_s": self._told.interruption_unix_s,
            "rebalance": self._told.rebalance,
            "plan": self._plan.key,
            "pipeline": None if pipeline is None else pipeline.id,
            "generation": None if pipeline is None else pipeline.generation,
            "workers": self._running[1].running if self._running is not None else 0,
            "failure": self._failure,
        }
        body = claims.worker_body(self._config.incarnation, self._progress, gone=last, facts=facts)
        self._spawner.spawn(_put(keys.node(self._config.job_id, self._config.node), body), done)

    def _tolerate(self, error: ShuntServeError | None, what: str) -> bool:
        """Whether it went well. Whatever the bucket says, the agent tries again; its leases end what cannot go on."""
        if error is not None:
            telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, node=self._config.node, what=what, error=str(error))
        return error is None


def _put(key: str, body: bytes) -> Procedure[None]:
    yield Put(key, body)


def _newest_plan(job_id: str, seen: _SeenPlan) -> Procedure[_SeenPlan]:
    """The newest plan that counts: one of an older epoch than another before it was written by a dead controller."""
    for info in (yield ListKeys(keys.plans(job_id), seen.key)):
        value = claims.load(info.key, (yield Get(info.key)))
        if value["epoch"] < seen.epoch:
            seen = _SeenPlan(info.key, seen.epoch, seen.desired)
        else:
            seen = _SeenPlan(info.key, value["epoch"], Desired.from_json(value["desired"]))
    return seen


def _may_run(job_id: str, node: str) -> Procedure[tuple[str | None, bool]]:
    """What the newest renewal of the spending lease wrote (None before the first), and whether this machine was written
    off: a launch that came through only after its controller had been replaced.
    """
    written_off = (yield Head(keys.launch_ended(job_id, node))) is not None
    key = keys.spending(job_id)
    try:
        value = claims.load(key, (yield Get(key)))
    except NotFound:
        return None, written_off
    return f"{value['writer']}/{value['counter']}", written_off
