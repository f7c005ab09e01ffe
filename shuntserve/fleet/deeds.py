"""What a controller does, each deed only while it holds its lease, and each such that it can be repeated.

plan        the next number of the log, created
launch      the intent first (created), then the request; one intent is one machine
end         asked of the provider until the provider has it no more, then written down
spending    the lease of all machines, renewed
"""

from __future__ import annotations

from collections.abc import Callable

from shuntserve import telemetry
from shuntserve.core.offers import Offer
from shuntserve.core.reconcile import Decision, NodeState
from shuntserve.core.states import Pause
from shuntserve.errors import InvalidInput
from shuntserve.fleet.controller_lease import ControllerLease
from shuntserve.fleet.controller_memory import Memory
from shuntserve.fleet.observe import Seen, free_slot
from shuntserve.fleet.provider import Launch, NoCapacity, Provider
from shuntserve.job import control, fleet_records
from shuntserve.job.fleet_records import LaunchRecord, PlanRecord
from shuntserve.store import keys
from shuntserve.store.port import Bucket

COOL_S = 180.0
"""An offer that failed is not asked for again for so long; capacity comes back in minutes, not in seconds."""


class Deeds:
    """The hands of one controller. `clock_s` is asked before each deed: requests may take long."""

    def __init__(
        self,
        bucket: Bucket,
        job_id: str,
        provider: Provider,
        lease: ControllerLease,
        clock_s: Callable[[], float],
        drain_s: float,
    ) -> None:
        self._bucket = bucket
        self._job_id = job_id
        self._provider = provider
        self._lease = lease
        self._clock_s = clock_s
        self._drain_s = drain_s

    def carry_out(
        self, memory: Memory, decision: Decision, seen: tuple[Seen, ...], now_s: float, now_unix_s: float
    ) -> None:
        """Write the plan, end machines, stop or pause, launch. Each step can be repeated, and needs the lease."""
        if not self.may_act():
            return
        # A plan of each epoch, though nothing may have changed: from then on nobody heeds a late one of an older epoch.
        if memory.plan is None or decision.desired != memory.plan.desired or memory.plan.epoch != self._lease.epoch:
            self._write_plan(memory, decision, now_unix_s)
        by_id = {one.launch.id: one for one in seen}
        for end in decision.ends:
            if not self.may_act():
                return
            self._end_machine(memory, by_id[end.node], end.why, now_s, now_unix_s)
        if (decision.stop or decision.pause) and not self.may_act():
            return
        if decision.stop is not None:
            telemetry.emit(telemetry.Event.JOB_STOPPED, job=self._job_id, reason=str(decision.stop))
            control.stop(self._bucket, self._job_id, self._lease.incarnation, decision.stop)
            memory.timeline.event(now_unix_s, "stop", reason=str(decision.stop))
        if decision.pause is not None:
            self.pause(memory, decision.pause, now_unix_s)
        slots = list(seen)
        for buy in decision.buys:
            if not self.may_act():
                return
            launched = self._launch(memory, buy.pool, buy.offer, slots, now_s, now_unix_s)
            if launched is None:
                return
            slots.append(launched)

    def may_act(self) -> bool:
        """Whether nobody else can act by now. Ask before each deed."""
        return not self._lease.must_stop(self._clock_s())

    def _write_plan(self, memory: Memory, decision: Decision, now_unix_s: float) -> None:
        assert self._lease.epoch is not None
        number = 0 if memory.plan is None else memory.plan.number + 1
        reason = f"{len(decision.desired.pipelines)} pipelines, {len(decision.desired.leave)} nodes leave"
        body = fleet_records.body(
            self._lease.incarnation,
            epoch=self._lease.epoch,
            desired=decision.desired.to_json(),
            reason=reason,
            created_unix_s=now_unix_s,
        )
        if not self._bucket.create(keys.plan(self._job_id, number), body):
            memory.plan = fleet_records.newest_plan(self._bucket, self._job_id)  # somebody else's: look again
            return
        memory.plan = PlanRecord(number, self._lease.epoch, decision.desired, reason, now_unix_s)
        telemetry.emit(telemetry.Event.PLAN_WRITTEN, job=self._job_id, plan=number, reason=reason)
        memory.timeline.event(now_unix_s, "plan", number=number, pipelines=len(decision.desired.pipelines))

    def _end_machine(self, memory: Memory, one: Seen, why: str, now_s: float, now_unix_s: float) -> None:
        """Terminate, and write down that it has ended once the provider says so and can be believed.

        What is written down is never looked at again. So neither a provider that does not answer, nor one that does
        not know a machine yet which it has been asked for, is a reason to.
        """
        launch_id = one.launch.id
        if one.missing and one.node.state in (NodeState.DRAINED, NodeState.LOST):
            self._note_end(launch_id, why, memory.observer.ran_until_unix_s(one.launch, now_unix_s))
            return
        asked_s = memory.terminated_s.get(launch_id)
        if asked_s is None or now_s - asked_s >= self._drain_s:
            memory.terminated_s[launch_id] = now_s
            self._provider.terminate(self._job_id, launch_id)

    def _note_end(self, launch_id: str, why: str, ended_unix_s: float) -> None:
        body = fleet_records.body(self._lease.incarnation, ended_unix_s=ended_unix_s, why=why)
        self._bucket.create(keys.launch_ended(self._job_id, launch_id), body)
        telemetry.emit(telemetry.Event.MACHINE_ENDED, job=self._job_id, node=launch_id, why=why)

    def _launch(
        self, memory: Memory, pool: str, offer: Offer, seen: list[Seen], now_s: float, now_unix_s: float
    ) -> Seen | None:
        """Write the intent, then ask for the machine; None when that failed or another controller was first."""
        number = 1 + max((int(name[1:]) for name in memory.observer.launches), default=0)
        slot = free_slot(seen)
        record = LaunchRecord(
            id=f"n{number:04d}",
            pool=pool,
            offer=offer.name,
            instance_type=offer.instance_type,
            zone=offer.zone,
            market=offer.market,
            usd_per_h=offer.usd_per_h or 0.0,
            on_demand_usd_per_h=self._provider.on_demand_usd_per_h(offer),
            slot=slot,
            launched_unix_s=now_unix_s,
        )
        body = fleet_records.body(self._lease.incarnation, **record.to_json())
        if not self._bucket.create(keys.launch(self._job_id, record.id), body):
            return None
        memory.observer.launches[record.id] = record
        if not self.may_act():  # whoever acts now sees the intent, and waits for no machine for long
            return None
        slots = sum(want.count for want in memory.wants)
        try:
            self._provider.launch(Launch(record.id, self._job_id, pool, offer, slot % slots, slots))
        except (NoCapacity, InvalidInput) as error:
            memory.cooling[offer.name] = now_s + COOL_S
            memory.last_failure = str(error)
            telemetry.emit(telemetry.Event.LAUNCH_FAILED, job=self._job_id, node=record.id, error=str(error))
            if isinstance(error, InvalidInput):
                memory.failures += 1
            self._provider.terminate(self._job_id, record.id)  # a launch whose reply was lost may have made one
            self._note_end(record.id, f"not launched: {error.cause}", now_unix_s)
            return None
        telemetry.emit(telemetry.Event.MACHINE_LAUNCHED, job=self._job_id, node=record.id, pool=pool, offer=offer.name)
        memory.timeline.event(now_unix_s, "launch", record.id, pool=pool, offer=offer.name)
        return memory.observer.as_launched(record, now_s)

    def renew_spending(self, memory: Memory, now_s: float) -> None:
        """Machines may go on costing money for another lease."""
        if now_s < memory.spending_due_s or not self.may_act():
            return
        memory.spending_counter += 1
        body = fleet_records.body(self._lease.incarnation, counter=memory.spending_counter)
        self._bucket.put(keys.spending(self._job_id), body)
        memory.spending_due_s = now_s + memory.job.operations.spending_lease_s / 6

    def pause(self, memory: Memory, pause: Pause, now_unix_s: float) -> str:
        telemetry.emit(telemetry.Event.JOB_PAUSED, job=self._job_id, reason=str(pause))
        control.pause(self._bucket, self._job_id, self._lease.incarnation, str(pause))
        memory.timeline.event(now_unix_s, "pause", reason=str(pause))
        return str(pause)
