"""The controller of one job: from its spec to its output, whatever dies on the way.

    lease ─► ingest ─► proposal ─► (approval) ─► look · decide · act, again and again ─► finalize ─► report

`tick` advances it; it blocks for bucket and provider requests only. Long work (ingest, finalize) runs beside it and may
be cut off anywhere. Everything it knows it has read: a controller that takes over goes on where the bucket says, and
one that cannot renew its lease stops acting.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from shuntserve import telemetry
from shuntserve.core.desired import Desired
from shuntserve.core.manifest import Manifest
from shuntserve.core.offers import Want, read_offers
from shuntserve.core.reconcile import Money, Node, NodeState, World, decide
from shuntserve.core.resolved import ResolvedJob
from shuntserve.core.shapes import read_shapes
from shuntserve.core.states import ended_exit_code, paused_exit_code, read_pause
from shuntserve.errors import ShuntServeError, Unavailable
from shuntserve.fleet.controller_lease import ControllerLease
from shuntserve.fleet.controller_memory import Beside, ControllerTimes, Memory, Work, on_a_thread
from shuntserve.fleet.deeds import Deeds
from shuntserve.fleet.observe import FleetObserver, Seen
from shuntserve.fleet.proposal import propose
from shuntserve.fleet.provider import Provider
from shuntserve.job import control, fleet_records
from shuntserve.job.control import Standing
from shuntserve.job.final import load_final
from shuntserve.job.interruptions import InterruptionWatch
from shuntserve.job.local_run import Limits, bury_the_dead
from shuntserve.job.manifests import load_manifest
from shuntserve.job.timeline import Sample, Timeline, read_timeline
from shuntserve.job.watch import Snapshot, Watcher
from shuntserve.store import keys
from shuntserve.store.port import Bucket

_LEAVE_WITHIN_DRAINS = 4.0
"""A node that has not left after so many times the time to drain is terminated."""


class ControllerLoop:
    """One controller process. `tick` until `over`; then `exit_code`, or `failure`, tells how it ended.

    `clock_s` is the clock of `tick`'s `now_s`: requests may take long, so it is asked again before each deed whether
    the lease still runs.
    """

    def __init__(
        self,
        bucket: Bucket,
        job: ResolvedJob,
        provider: Provider,
        lease: ControllerLease,
        work: Work,
        clock_s: Callable[[], float],
        times: ControllerTimes | None = None,
        beside: Beside = on_a_thread,
    ) -> None:
        self._bucket = bucket
        self._job = job
        self._provider = provider
        self._lease = lease
        self._work = work
        self._times = times or ControllerTimes()
        self._deeds = Deeds(bucket, job.job_id, provider, lease, clock_s, self._times.drain_s)
        self._start_beside = beside
        self._running: tuple[str, Future[Any]] | None = None
        self._memory: Memory | None = None
        self._next_look_s = -math.inf
        self.over = False
        self.exit_code: int | None = None
        self.failure: ShuntServeError | None = None
        self.state = "standby"
        self.usd_per_h = 0.0
        self.spent_usd = 0.0
        self.newest: tuple[ResolvedJob, Snapshot, dict[str, int]] | None = None
        """The newest look: the job as it is run, its progress, and how many machines are in each state."""

    def facts(self) -> dict[str, Any]:
        """What this controller tells of itself beside its progress counter."""
        memory = self._memory
        return {
            "state": self.state,
            "spent_usd": round(self.spent_usd, 6),
            "usd_per_h": round(self.usd_per_h, 6),
            "failure": str(self.failure) if self.failure else memory.last_failure if memory is not None else None,
        }

    def tick(self, now_s: float, now_unix_s: float) -> float:
        """Advance; returns seconds until the next tick."""
        try:
            if not self._lease.tick(now_s):
                self._forget()
                return self._times.look_s / 2
            if self._memory is None:
                self._memory = self._recall()
                self._next_look_s = now_s
            if self._memory.closer is not None:
                self._memory.closer.tick(now_s)
                if self._memory.closer.all_failed:
                    raise self._memory.closer.failures[0]
            if now_s >= self._next_look_s:
                self._next_look_s = now_s + self._times.look_s
                self._act(self._memory, now_s, now_unix_s)
                self._memory.timeline.flush(now_unix_s)
        except Unavailable as error:  # the next tick goes on; the lease decides how long this may last
            if self._memory is not None:
                self._memory.observer.could_not_read()
            telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, what="controller", job=self._id, error=str(error))
        except ShuntServeError as error:
            self._fail(error)
        return 0.0 if self.over else min(0.1, self._times.look_s)

    def leave(self) -> None:
        """Stop acting and let another take over: nothing is drained, machines go on as long as their lease."""
        self._end(None)

    def close(self) -> None:
        """However it is left, nothing of this process stays behind."""
        if self._memory is not None and self._memory.closer is not None:
            self._memory.closer.end()

    # -- taking over -------------------------------------------------------------------------------------------------

    @property
    def _id(self) -> str:
        return self._job.job_id

    def _recall(self) -> Memory:
        """Read everything anew."""
        self._job = job = self._work.current()
        wants = self._wants(job)
        rules = self._lease.rules
        lease_s = job.operations.spending_lease_s
        observer = FleetObserver(self._bucket, self._id, self._provider, rules, lease_s)
        timeline = Timeline(self._bucket, self._id, f"controller-{self._lease.incarnation}")
        told = read_timeline(self._bucket, self._id)
        memory = Memory(job, wants, observer, timeline, InterruptionWatch(told))
        memory.told = {(event.node, event.kind) for event in told.events}
        memory.plan = fleet_records.newest_plan(self._bucket, self._id)
        return memory

    def _wants(self, job: ResolvedJob) -> tuple[Want, ...]:
        """The job's pools, with prices."""
        operations = job.operations
        return tuple(
            replace(want, offers=tuple(self._provider.price(offer) for offer in want.offers))
            for want in read_offers(operations.fleet, operations.pools, operations.market)  # type: ignore[arg-type]
        )

    def _forget(self) -> None:
        if self._memory is not None and self._memory.closer is not None:
            self._memory.closer.end()
        self._memory = None
        self.state = "standby"

    # -- phases ------------------------------------------------------------------------------------------------------

    def _act(self, memory: Memory, now_s: float, now_unix_s: float) -> None:
        if memory.final is None:
            memory.final = load_final(self._bucket, self._id)
        if memory.manifest is None:
            memory.manifest = load_manifest(self._bucket, self._id)
        if memory.manifest is None:
            self._phase(memory, "ingest", now_unix_s)
            self.state = "ingesting"
            self._beside("ingest", lambda: self._work.ingest(memory.job))
            return
        standing = control.standing(self._bucket, self._id)
        if standing.adjusted != memory.adjusted:
            memory.job, memory.adjusted = self._work.current(), dict(standing.adjusted)
            memory.wants, memory.proposal = self._wants(memory.job), None
        waits = memory.final is None and self._awaits_approval(memory, memory.manifest, standing)
        if memory.final is not None:
            self._phase(memory, None, now_unix_s)
        elif memory.phase != "finalize":
            self._phase(memory, "plan" if waits else "run", now_unix_s)
        self._run(memory, memory.manifest, standing, waits=waits, now_s=now_s, now_unix_s=now_unix_s)

    def _phase(self, memory: Memory, phase: str | None, now_unix_s: float) -> None:
        """Say which phase the job is in now."""
        if phase == memory.phase:
            return
        if memory.phase is not None:
            memory.timeline.event(now_unix_s, "phase_ended", phase=memory.phase)
        if phase is not None:
            memory.timeline.event(now_unix_s, "phase_started", phase=phase)
        memory.phase = phase
        self._next_look_s = -math.inf

    def _beside(self, what: str, do: Callable[[], Any]) -> Any:
        """Run one long thing on a thread, once at a time; its value when it has ended, else None."""
        if self._running is None:
            self._running = (what, self._start_beside(do))
            return None
        running, future = self._running
        if not future.done():
            return None
        self._running = None
        value = future.result()  # raises what it raised
        return value if running == what else None

    def _awaits_approval(self, memory: Memory, manifest: Manifest, standing: Standing) -> bool:
        """Make the proposal; True while somebody has to agree first and has not."""
        if memory.proposal is None:
            prediction = self._work.predict(memory.job, manifest, memory.wants)
            proposal = propose(memory.job, memory.wants, prediction)
            self._bucket.put(keys.proposal(self._id), fleet_records.body(self._lease.incarnation, **proposal))
            memory.proposal = proposal
        proposal = memory.proposal
        if not proposal["approval_needed"] or standing.stopped is not None:
            return False
        return self._bucket.head(keys.approval(self._id, fleet_records.digest(proposal))) is None

    # -- running -----------------------------------------------------------------------------------------------------

    def _run(
        self,
        memory: Memory,
        manifest: Manifest,
        standing: Standing,
        *,
        waits: bool,
        now_s: float,
        now_unix_s: float,
    ) -> None:
        """One look, one decision, its deeds. `waits`: somebody has to agree first; machines that run already leave."""
        if memory.watcher is None:
            memory.watcher = Watcher(self._bucket, self._id, manifest)
            bury_the_dead(self._bucket, self._id, memory.watcher.snapshot())
        snapshot = memory.watcher.snapshot()
        seen = memory.observer.look(now_s, now_unix_s)
        self.spent_usd = memory.observer.spent_usd(now_unix_s)
        self.usd_per_h = sum(one.launch.usd_per_h for one in seen)
        self._tell(memory, snapshot, seen, now_unix_s)
        self._count_failures(memory, snapshot, seen)
        if memory.paused and standing.paused is None:  # whoever resumed it has mended what failed
            memory.failures = 0
        memory.paused = standing.paused is not None
        paused = None  # a job that was stopped for good is closed, paused or not
        if standing.stopped is None:
            paused = standing.paused or self._pause_by_limits(memory, snapshot, now_unix_s)
        leaving = waits or snapshot.complete or paused is not None or standing.stopped is not None
        self._deeds.renew_spending(memory, now_s)
        world = self._world(memory, snapshot, standing, seen, leaving=leaving, now_s=now_s, now_unix_s=now_unix_s)
        decision = decide(world)
        self.state = "awaiting_approval" if waits else "draining" if leaving else "running"
        self._deeds.carry_out(memory, decision, seen, now_s, now_unix_s)
        if standing.stopped is not None and not snapshot.complete:
            self._close_job(memory, snapshot)
        self._conclude(memory, manifest, snapshot, paused, fleet_gone=not seen, now_unix_s=now_unix_s)

    def _world(
        self,
        memory: Memory,
        snapshot: Snapshot,
        standing: Standing,
        seen: tuple[Seen, ...],
        *,
        leaving: bool,
        now_s: float,
        now_unix_s: float,
    ) -> World:
        nodes = tuple(self._with_patience(memory, one, now_s) for one in seen)
        operations = memory.job.operations
        cap_usd = math.inf if operations.max_cost_usd is None else operations.max_cost_usd
        deadline = operations.deadline_unix_s
        return World(
            wants=memory.wants,
            nodes=nodes,
            chunks_left=snapshot.chunks - snapshot.chunks_committed,
            money=Money(self.spent_usd, cap_usd),
            leaving=leaving,
            stopped=standing.stopped is not None,
            deadline_passed=deadline is not None and now_unix_s >= deadline,
            cooling=frozenset(name for name, until_s in memory.cooling.items() if now_s < until_s),
            failures_in_a_row=memory.failures,
            desired=memory.plan.desired if memory.plan is not None else Desired(),
            next_number=0 if memory.plan is None else memory.plan.number + 1,
            shapes=read_shapes(operations.pipelines, memory.wants),
            drain_s=self._times.drain_s,
        )

    def _with_patience(self, memory: Memory, one: Seen, now_s: float) -> Node:
        """The node, overdue when the plan has told it to leave for long."""
        told = memory.plan is not None and one.launch.id in memory.plan.desired.leave
        if not told:
            memory.asked_to_leave_s.pop(one.launch.id, None)
            return one.node
        since_s = memory.asked_to_leave_s.setdefault(one.launch.id, now_s)
        return replace(one.node, overdue=now_s - since_s >= _LEAVE_WITHIN_DRAINS * self._times.drain_s)

    def _pause_by_limits(self, memory: Memory, snapshot: Snapshot, now_unix_s: float) -> str | None:
        """Pause the job when too many rows were rejected or cut off; the reason, when that has just been done."""
        if snapshot.complete or not self._deeds.may_act():
            return None
        limits = Limits.of(memory.job)
        pause = limits.exceeded(
            snapshot.rows_in, snapshot.rejected, snapshot.total("length_finishes"), snapshot.total("sequences_out")
        )
        return None if pause is None else self._deeds.pause(memory, pause, now_unix_s)

    def _close_job(self, memory: Memory, snapshot: Snapshot) -> None:
        """The job was stopped: a worker without an engine commits what nobody holds."""
        if memory.closer is None:
            bury_the_dead(self._bucket, self._id, snapshot)
            memory.closer = self._work.closer(memory.job)

    def _conclude(
        self,
        memory: Memory,
        manifest: Manifest,
        snapshot: Snapshot,
        paused: str | None,
        *,
        fleet_gone: bool,
        now_unix_s: float,
    ) -> None:
        """Finalize as soon as all is committed; end when the fleet has gone."""
        if snapshot.complete and memory.final is None:
            self._phase(memory, "finalize", now_unix_s)
            self.state = "finalizing"
            memory.final = self._beside("finalize", lambda: self._work.finalize(memory.job, manifest))
            if memory.final is not None:
                self._phase(memory, None, now_unix_s)
                telemetry.emit(telemetry.Event.JOB_FINISHED, job=self._id, state=str(memory.final.state))
        if not fleet_gone:
            return
        if memory.final is not None:
            memory.timeline.flush(now_unix_s, force=True)
            self._work.report(memory.job, manifest, memory.final)
            final = memory.final
            self._end(ended_exit_code(final.state, final.counts, memory.job.operations.max_reject_fraction))
        elif paused is not None and not snapshot.complete:
            self._phase(memory, None, now_unix_s)
            memory.timeline.flush(now_unix_s, force=True)
            self._end(paused_exit_code(read_pause(paused)))

    # -- telling -----------------------------------------------------------------------------------------------------

    def _tell(self, memory: Memory, snapshot: Snapshot, seen: tuple[Seen, ...], now_unix_s: float) -> None:
        """What is new, into the timeline."""
        self.newest = (memory.job, snapshot, Counter(str(one.node.state) for one in seen))
        sample = Sample.of(
            snapshot,
            nodes=sum(one.node.state is NodeState.READY for one in seen),
            spent_usd=self.spent_usd,
            usd_per_h=self.usd_per_h,
        )
        memory.timeline.sample(now_unix_s, sample)
        memory.interruptions.tell(now_unix_s, snapshot, memory.timeline)
        for one in seen:
            node = one.node
            for kind, now in (
                ("node_ready", node.state is NodeState.READY),
                ("rebalance", node.rebalance),
                ("notice", node.noticed),
                ("node_lost", node.state is NodeState.LOST),
            ):
                if now and (node.id, kind) not in memory.told:
                    memory.told.add((node.id, kind))
                    memory.timeline.event(now_unix_s, kind, node.id, offer=node.offer)

    def _count_failures(self, memory: Memory, snapshot: Snapshot, seen: tuple[Seen, ...]) -> None:
        """Machines on which nothing works, since the last commit."""
        if snapshot.chunks_committed > memory.committed:
            memory.committed, memory.failures = snapshot.chunks_committed, 0
        for one in seen:
            # One the provider never had says nothing about our software: a request that got lost, an API that was out.
            made = one.node.state is NodeState.LATE or memory.observer.had_machine(one.launch.id)
            never_came = one.report is None and made and one.node.state in (NodeState.LOST, NodeState.LATE)
            if (one.node.failure is not None or never_came) and one.launch.id not in memory.failed_nodes:
                memory.failed_nodes.add(one.launch.id)
                memory.failures += 1
                memory.last_failure = one.node.failure or f"machine {one.launch.id} never reported"

    # -- ending ------------------------------------------------------------------------------------------------------

    def _fail(self, error: ShuntServeError) -> None:
        telemetry.emit(telemetry.Event.CONTROLLER_EXITED, job=self._id, outcome="failed", error=str(error))
        if self._memory is not None:
            self._memory.last_failure = str(error)
        self.failure = error
        self.state = "failed"
        self.over = True

    def _end(self, exit_code: int | None) -> None:
        telemetry.emit(telemetry.Event.CONTROLLER_EXITED, job=self._id, outcome="ended", exit_code=exit_code)
        self.state = "ended"
        self.exit_code = exit_code
        self.over = True
