"""What status says of a job on a fleet: its schema at every moment, and its words and numbers at the ones of note."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from shuntserve.core.states import StopCode
from shuntserve.job import claims, control, fleet_records
from shuntserve.job.status import SCHEMA, JobStatus, job_status
from shuntserve.store import keys
from tests.support.fleet_world import BEGAN_UNIX_S, World

NUMBER = (int, float)
NONE = type(None)
SHAPE: dict[str, Any] = {
    "schema": str,
    "id": str,
    "name": str,
    "state": str,
    "model": str,
    "parent": (str, NONE),
    "output": (str, NONE),
    "rows": dict.fromkeys(("total", "ok", "rejected", "ended"), (int, NONE)),
    "chunks": {"total": (int, NONE), "committed": (int, NONE)},
    "tokens": {
        "prompt": (int, NONE),
        "generated": int,
        "durable": int,
        "kept": (int, NONE),
        "regenerated": int,
    },
    "cost": {
        "spent_usd": NUMBER,
        "cap_usd": (*NUMBER, NONE),
        "forecast_usd": (*NUMBER, NONE),
        "on_demand_usd": (*NUMBER, NONE),
        "usd_per_h": NUMBER,
    },
    "finish": dict.fromkeys(("started", "eta", "ended", "deadline"), (str, NONE)),
    "approval": {"needed": bool, "given_by": (str, NONE), "proposal": (dict, NONE)},
    "controller": (dict, NONE),
    "nodes": list,
    "workers": list,
    "interruptions": list,
    "pause": (str, NONE),
    "stopped_by": (str, NONE),
    "failure": (str, NONE),
    "exit_code": (int, NONE),
    "next_step": str,
}
CONTROLLER = {"state": str, "epoch": int, "host": (str, NONE), "pid": (int, NONE), "alive": bool}
NODE = {
    "id": str,
    "pool": str,
    "market": str,
    "state": str,
    "usd_per_h": NUMBER,
    "since": str,
    "notice": (str, NONE),
    "workers": int,
    "failure": (str, NONE),
}
INTERRUPTION = {"time": str, "kind": str, "node": (str, NONE), "detail": str}
STATES = {
    "SUBMITTED",
    "INGESTING",
    "AWAITING_APPROVAL",
    "WAITING",
    "RUNNING",
    "PAUSED",
    "STOPPING",
    "FINALIZING",
    "COMPLETED",
    "COMPLETED_WITH_REJECTS",
    "PARTIAL",
    "FAILED",
}


def fits(value: Any, shape: Any, where: str = "status") -> None:
    """Exactly these names, each of its type."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        assert value.keys() == shape.keys(), where
        for name, part in shape.items():
            fits(value[name], part, f"{where}.{name}")
    else:
        assert isinstance(value, shape), f"{where} is {value!r}"
        assert not (isinstance(value, bool) and shape is not bool), where


def look(world: World) -> dict[str, Any]:
    """The job's status, checked against the schema and read back from JSON."""
    told: dict[str, Any] = json.loads(json.dumps(status(world).to_json(), allow_nan=False))
    fits(told, SHAPE)
    if told["controller"] is not None:
        fits(told["controller"], CONTROLLER)
    for node in told["nodes"]:
        fits(node, NODE)
    for event in told["interruptions"]:
        fits(event, INTERRUPTION)
    for moment in (*told["finish"].values(), *(node["since"] for node in told["nodes"])):
        assert moment is None or datetime.fromisoformat(moment).tzinfo is not None
    assert told["schema"] == SCHEMA == "shuntserve.status/1"
    assert told["state"] in STATES
    return told


def status(world: World) -> JobStatus:
    return job_status(world.bucket, world.job.job_id, now_unix_s=world.now_unix_s)


def worker(world: World, node: str, **counters: int) -> None:
    """A worker of a node tells of itself."""
    facts = {"node": node, "state": "working", **counters}
    world.bucket.put(keys.worker(world.job.job_id, f"w-{node}"), claims.worker_body(f"w-{node}", 1, facts=facts))


def test_a_job_that_nobody_started() -> None:
    """Everything that is not known yet is null, and the next step starts it."""
    world = World()
    told = look(world)

    assert told["state"] == "SUBMITTED"
    assert told["rows"] == {"total": None, "ok": None, "rejected": None, "ended": None}
    assert told["controller"] is None
    assert (told["nodes"], told["exit_code"]) == ([], None)
    assert told["next_step"] == f"start it: shuntserve resume {world.job.job_id}"


def test_the_schema_holds_at_every_moment() -> None:
    """From submission to report, through a notice, a lost machine, a pause and a resume."""
    world = World(("local=2@1",), chunks=30, operations={"max_cost_usd": 50.0})
    controller = world.controller()
    seen = [look(world)]
    for step in range(400):
        world.step()
        if step % 5 == 0:
            seen.append(look(world))
        match step:
            case 20:
                world.machine(1).notice(in_s=20.0)
            case 30:
                world.machine(2).end()
            case 60:
                control.pause(world.bucket, world.job.job_id, "user", "requested")
            case 90:
                control.resume(world.bucket, world.job.job_id, "user")
                controller = world.controller()
        if step > 90 and not controller.alive:
            break
    seen.append(look(world))

    assert seen[-1]["state"] == "COMPLETED"
    assert seen[-1]["rows"] == {"total": 300, "ok": 300, "rejected": 0, "ended": 300}
    assert (seen[-1]["exit_code"], seen[-1]["next_step"]) == (0, "read the output")
    assert {event["kind"] for event in seen[-1]["interruptions"]} >= {"notice", "node_lost"}
    spent = [told["cost"]["spent_usd"] for told in seen]
    assert spent == sorted(spent), "what was spent never shrinks while somebody watches"
    committed = [told["chunks"]["committed"] or 0 for told in seen]
    assert committed == sorted(committed)
    assert any(told["state"] == "PAUSED" for told in seen)
    assert any(node["notice"] for told in seen for node in told["nodes"])


def test_a_running_job_in_numbers() -> None:
    """Two machines at 36 $ an hour, one worker on each: what it has cost, what it costs, and when it will be done."""
    world = World(("local=2@36",), chunks=100, operations={"max_cost_usd": 90.0})
    world.controller()
    world.run(lambda: len(world.open_chunks()) == 90)
    for node in ("n0001", "n0002"):
        worker(world, node, tokens_generated=500, tokens_durable=450)
    for _ in range(60):
        world.step()
    told = look(world)
    lived_s = world.now_unix_s - min(launch.launched_unix_s for launch in world.launches().values())

    assert told["state"] == "RUNNING"
    assert told["tokens"]["generated"] == 1000
    assert told["tokens"]["durable"] == 900
    assert told["cost"]["usd_per_h"] == 72.0
    assert told["cost"]["spent_usd"] == pytest.approx(2 * 36 * lived_s / 3600, rel=0.01)
    assert told["cost"]["on_demand_usd"] == pytest.approx(2 * 10 * lived_s / 3600, rel=0.01)
    assert told["cost"]["cap_usd"] == 90.0
    assert [node["state"] for node in told["nodes"]] == ["ready", "ready"]
    assert told["controller"]["alive"] is True
    assert told["next_step"] == "wait"
    done = told["chunks"]["committed"]
    left_s = datetime.fromisoformat(told["finish"]["eta"]).timestamp() - world.now_unix_s
    assert left_s == pytest.approx((100 - done) * world.chunk_s / 2, rel=0.3)
    assert told["cost"]["forecast_usd"] == pytest.approx(told["cost"]["spent_usd"] + 72 * left_s / 3600, rel=0.01)


def test_workers_of_machines_that_ended_are_not_at_work() -> None:
    """A machine's power was cut; nobody could sign its worker off. It does not make the job look alive."""
    world = World(("local=1@1",), chunks=60)
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) == 58)
    worker(world, "n0001")
    assert (look(world)["state"], len(look(world)["workers"])) == ("RUNNING", 1)
    world.machine(1).end()
    world.provider.refuses = {"local/spot"}
    world.run(lambda: world.launches()["n0001"].ended_unix_s is not None, 30)
    world.run(lambda: world.launches().get("n0002") is not None, 10)
    controller.lease.tell(world.now_s)
    told = look(world)

    assert (told["state"], told["workers"], told["finish"]["eta"]) == ("WAITING", [], None)
    assert told["next_step"].startswith("wait for machines; the last attempt: offer local/spot: no capacity")


def test_machines_nobody_looks_after_stop_costing_in_status_too() -> None:
    """The controller died an hour ago: machines have ended by their lease, and nobody is at work."""
    world = World(("local=2@36",), chunks=1000)
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) == 990)
    controller.alive = False
    world.run(lambda: not world.provider.running, 60)
    real_usd = world.provider.usd(36.0)
    world.now_s += 3600.0
    told = look(world)

    assert told["cost"]["usd_per_h"] == 0
    assert real_usd <= told["cost"]["spent_usd"] <= real_usd + 2 * 36 * (30 + fleet_records.SHUTDOWN_S) / 3600
    assert told["controller"]["alive"] is False
    assert told["next_step"] == f"nobody is at work on it; go on with: shuntserve resume {world.job.job_id}"


def test_a_job_that_asks() -> None:
    """What it proposes, who agreed, and how to agree."""
    world = World(("local=2@36",), operations={"approval": "always"})
    controller = world.controller()
    world.run(lambda: controller.loop.state == "awaiting_approval")
    controller.lease.tell(world.now_s)
    told = look(world)
    assert told["state"] == "AWAITING_APPROVAL"
    assert told["approval"]["needed"] is True
    assert told["approval"]["proposal"]["usd_per_h"] == 72.0
    assert told["next_step"].endswith(f"shuntserve approve {world.job.job_id}")
    key = keys.approval(world.job.job_id, fleet_records.digest(told["approval"]["proposal"]))
    world.bucket.create(key, fleet_records.body("user", by="ada"))
    world.run(lambda: bool(world.launches()), 10)
    controller.lease.tell(world.now_s)
    told = look(world)
    assert told["approval"]["given_by"] == "ada"
    assert told["approval"]["needed"] is False


def test_a_stopped_job() -> None:
    """While its rows are rejected, and after."""
    world = World(chunks=40, operations={"lease_s": 6.0})
    controller = world.controller()
    world.run(lambda: len(world.open_chunks()) < 36)
    control.stop(world.bucket, world.job.job_id, "user", StopCode.BUDGET)
    assert look(world)["state"] == "STOPPING"
    assert look(world)["exit_code"] is None
    world.run(lambda: not controller.alive)
    told = look(world)
    assert (told["state"], told["stopped_by"], told["exit_code"]) == ("PARTIAL", "budget", 4)
    assert told["rows"]["rejected"] + told["rows"]["ok"] == told["rows"]["total"] == 400
    assert told["finish"]["ended"] is not None
    assert told["next_step"].endswith(f"shuntserve retry {world.job.job_id}")


def test_moments_are_in_utc_with_milliseconds() -> None:
    """As ISO 8601, wherever it is read."""
    world = World(operations={"deadline_unix_s": BEGAN_UNIX_S + 0.25})

    assert look(world)["finish"]["deadline"] == "2027-01-15T08:00:00.250+00:00"
