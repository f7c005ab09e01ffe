"""A job's whole fleet in one thread and under one clock: the real controllers and node agents, over a bucket in memory
and a provider that keeps the port's promises; only machines and workers are pretended."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from shuntserve.core.desired import Pipeline
from shuntserve.core.ledger import Rules
from shuntserve.core.manifest import ChunkRef, Manifest
from shuntserve.core.offers import Offer
from shuntserve.core.resolved import ResolvedJob
from shuntserve.core.spending import SpendingWatch
from shuntserve.core.states import RowCounts, StopCode, terminal_state
from shuntserve.errors import NotFound, ShuntServeError, Unavailable
from shuntserve.fleet.agent import AgentConfig, AgentLoop
from shuntserve.fleet.controller import ControllerLoop
from shuntserve.fleet.controller_lease import ControllerLease
from shuntserve.fleet.controller_memory import ControllerTimes, Work
from shuntserve.fleet.imds import Warnings
from shuntserve.fleet.provider import Launch, Machine, NoCapacity, Patience
from shuntserve.job import claims, control, final, fleet_records, manifests, ops
from shuntserve.job.adjust import current_job
from shuntserve.job.final import Final, Totals
from shuntserve.job.ops import Procedure
from shuntserve.job.submission import submit_resolved
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket, ObjectInfo
from tests.unit.outputs.builders import JOB

STEP_S = 0.5
BEGAN_UNIX_S = 1_800_000_000.0
ROWS_PER_CHUNK = 10


def memory_bucket() -> Bucket:
    """An empty one."""
    return open_bucket(f"memory://{uuid.uuid4().hex}")


class Killed(BaseException):
    """The process that made the request has been killed; no handler of its own runs."""


class Inline:
    """Runs procedures at once; their outcomes are told in `deliver`, as a real spawner does."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._ended: list[tuple[Callable[..., None], Any, ShuntServeError | None]] = []

    def spawn(self, procedure: Procedure[Any], done: Callable[[Any, ShuntServeError | None], None]) -> None:
        try:
            self._ended.append((done, ops.run(self._bucket, procedure), None))
        except ShuntServeError as error:
            self._ended.append((done, None, error))

    def deliver(self) -> None:
        ended, self._ended = self._ended, []
        for done, value, error in ended:
            done(value, error)


def at_once(do: Callable[[], Any]) -> Future[Any]:
    """The long parts of a job, done before anybody looks again."""
    future: Future[Any] = Future()
    try:
        future.set_result(do())
    except ShuntServeError as error:
        future.set_exception(error)
    return future


@dataclass
class Door:
    """A bucket as one process sees it: it may be out, and its process may die before, or right after, a request."""

    inner: Bucket
    out: bool = False
    requests_left: float = float("inf")
    die_after: bool = False
    on_write: Callable[[str, bytes], None] = lambda key, body: None
    on_request: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return self.inner.url

    def _pass(self) -> bool:
        """True when this is the last request, to be carried out before the process dies."""
        self.on_request()
        if self.out:
            raise Unavailable(self.url, "is out", "")
        self.requests_left -= 1
        if self.requests_left < 0 and not self.die_after:
            raise Killed
        return self.requests_left < 0

    def _do(self, request: Callable[[], Any]) -> Any:
        last = self._pass()
        value = request()
        if last:
            raise Killed
        return value

    def get(self, key: str) -> bytes:
        return self._do(lambda: self.inner.get(key))  # type: ignore[no-any-return]

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self._do(lambda: self.inner.get_range(key, start, end))  # type: ignore[no-any-return]

    def head(self, key: str) -> ObjectInfo | None:
        return self._do(lambda: self.inner.head(key))  # type: ignore[no-any-return]

    def put(self, key: str, body: bytes) -> None:
        self._do(lambda: (self.on_write(key, body), self.inner.put(key, body)))

    def create(self, key: str, body: bytes) -> bool:
        return self._do(lambda: (self.on_write(key, body), self.inner.create(key, body))[1])  # type: ignore[no-any-return]

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        return iter(self._do(lambda: list(self.inner.list(prefix, start_after=start_after))))

    def list_dirs(self, prefix: str) -> Sequence[str]:
        return self._do(lambda: self.inner.list_dirs(prefix))  # type: ignore[no-any-return]

    def delete(self, key: str) -> None:
        self._do(lambda: self.inner.delete(key))


class PretendWorkers:
    """One machine's workers: commit a chunk now and then, heed the control log, drain when they are told to."""

    def __init__(self, world: World, node: str) -> None:
        self._world = world
        self._node = node
        self._due_s = world.now_s + world.start_s
        self.running = 1
        self.draining = False
        self.flushes = 0
        self.failures: tuple[ShuntServeError, ...] = ()

    @property
    def finished(self) -> bool:
        return not self.running

    @property
    def all_failed(self) -> bool:
        return bool(self.failures)

    def tick(self, now_s: float) -> None:
        world = self._world
        if self.running and self._node in world.broken and now_s >= self._due_s:
            self.running, self.failures = 0, (Unavailable("engine", "does not start"),)
        standing = control.standing(world.bucket, world.job.job_id)
        if self.draining or standing.paused is not None or not world.open_chunks():
            self.running = 0
        if self.running and now_s >= self._due_s:
            self._due_s = now_s + world.chunk_s
            world.commit(world.open_chunks()[0], self._node)

    def flush(self) -> None:
        self.flushes += 1

    def drain(self) -> None:
        self.draining = True

    def kill(self) -> None:
        self.draining, self.running = True, 0

    def end(self) -> None:
        self.kill()


class PretendCloser(PretendWorkers):
    """Commits what is left of a stopped job."""

    def tick(self, now_s: float) -> None:
        stopped = control.standing(self._world.bucket, self._world.job.job_id).stopped
        assert stopped is not None, "a job is closed only after it was stopped"
        for chunk in self._world.open_chunks():
            self._world.commit(chunk, "closer", stopped)


@dataclass
class PretendMachine:
    """A machine of the provider: boots, runs its agent, ends."""

    world: World
    launch: Launch
    began_s: float
    ended_s: float | None = None
    told: Warnings = field(default_factory=Warnings)
    hung: bool = False
    """Its agent does nothing any more, not even notice that its lease has ended."""
    listed: bool = True
    agent: AgentLoop | None = None
    door: Door = field(init=False)
    workers: PretendWorkers | None = None
    starts: int = 0

    def __post_init__(self) -> None:
        self.door = Door(self.world.bucket)

    @property
    def running(self) -> bool:
        return self.ended_s is None

    def start_agent(self) -> None:
        world = self.world
        self.starts += 1
        job = current_job(world.bucket, world.job.job_id)
        lease_s = job.operations.lease_s
        config = AgentConfig(
            job.job_id, self.launch.id, uuid.uuid4().hex, job.operations.spending_lease_s, lease_s / 5, 1.0
        )
        spending = SpendingWatch.begin(job.operations.spending_lease_s, world.now_s)
        self.agent = AgentLoop(
            config, Inline(self.door), self._new_workers, lambda: self.told, {}, spending, lambda watch: None
        )

    def _new_workers(self, pipeline: Pipeline) -> PretendWorkers:
        self.workers = PretendWorkers(self.world, self.launch.id)
        return self.workers

    def tick(self) -> None:
        world = self.world
        if self.told.interruption_unix_s is not None and world.now_unix_s >= self.told.interruption_unix_s:
            self.end()
        if not self.running or self.hung or world.now_s < self.began_s + world.boot_s:
            return
        if self.agent is None:
            self.start_agent()
        assert self.agent is not None
        self.agent.tick(world.now_s, world.now_unix_s)
        if self.agent.over:
            self.end()

    def end(self) -> None:
        if self.ended_s is None:
            self.ended_s = self.world.now_s

    def recommend_rebalance(self) -> None:
        self.told = replace(self.told, rebalance=True)

    def notice(self, in_s: float) -> None:
        self.told = replace(self.told, interruption_unix_s=self.world.now_unix_s + in_s, action="terminate")


@dataclass
class PretendProvider:
    """Keeps the promises of `fleet.provider`. Its knobs are the ways in which EC2 is known to fail."""

    world: World
    rooms: dict[str, PretendMachine] = field(default_factory=dict)
    patience: Patience = field(default_factory=lambda: Patience(machine_s=10.0, agent_s=60.0))
    silent: bool = False
    """`machines` and `terminate` are not answered."""
    refuses: set[str] = field(default_factory=set)
    """Offers of which there is none to be had."""
    loses: str | None = None
    """What becomes of the next launch: its `request` or its `reply` is lost."""
    lists_late_s: float = 0.0

    def price(self, offer: Offer) -> Offer:
        return replace(offer, usd_per_h=offer.usd_per_h if offer.usd_per_h is not None else 9.0)

    def on_demand_usd_per_h(self, offer: Offer) -> float | None:
        return 10.0

    def launch(self, launch: Launch) -> None:
        intent = keys.launch(launch.job_id, launch.id)
        assert self.world.bucket.head(intent) is not None, "a machine was asked for before that was written down"
        if launch.offer.name in self.refuses:
            raise NoCapacity(f"offer {launch.offer.name}", "no capacity")
        lost, self.loses = self.loses, None
        if lost != "request" and launch.id not in self.rooms:
            self.rooms[launch.id] = PretendMachine(self.world, launch, self.world.now_s)
        if lost is not None:
            raise Unavailable("provider", "did not answer")

    def machines(self, job_id: str) -> Sequence[Machine]:
        if self.silent:
            raise Unavailable("provider", "did not answer")
        now_s = self.world.now_s
        return tuple(
            Machine(one.launch.id, f"i-{one.launch.id}")
            for one in self.rooms.values()
            if one.running and now_s >= one.began_s + self.lists_late_s
        )

    def terminate(self, job_id: str, launch_id: str, *, at_once: bool = False) -> None:
        if self.silent:
            raise Unavailable("provider", "did not answer")
        room = self.rooms.get(launch_id)
        if room is None or self.world.now_s < room.began_s + self.lists_late_s:
            return  # not known (yet)
        if at_once or room.agent is None or room.hung:
            room.end()
        else:
            room.agent.leave("SIGTERM")

    @property
    def running(self) -> list[PretendMachine]:
        return [room for room in self.rooms.values() if room.running]

    def usd(self, usd_per_h: float) -> float:
        """What they have really cost."""
        ends = ((room.ended_s if room.ended_s is not None else self.world.now_s, room) for room in self.rooms.values())
        return sum(usd_per_h * (end_s - room.began_s) / 3600 for end_s, room in ends)


class Controller:
    """One controller process."""

    def __init__(self, world: World, *, requests: float = float("inf"), die_after: bool = False) -> None:
        self.world = world
        self.alive = True
        self.stalled = False
        self.door = Door(world.bucket, requests_left=requests, die_after=die_after)
        job = current_job(world.bucket, world.job.job_id)
        rules = Rules(lease_s=job.operations.lease_s)
        self.lease = ControllerLease(self.door, job.job_id, rules, lambda: uuid.uuid4().hex, self._facts)
        self.ready = False
        self.loop = ControllerLoop(
            self.door,
            job,
            world.provider,
            self.lease,
            world.work(self.door),
            lambda: world.now_s,
            ControllerTimes(look_s=1.0, drain_s=20.0),
            beside=at_once,
        )
        self.ready = True

    def _facts(self) -> dict[str, Any]:
        return {"told_unix_s": self.world.now_unix_s, **(self.loop.facts() if self.ready else {})}

    def tick(self) -> None:
        if not self.alive or self.stalled:
            return
        try:
            self.loop.tick(self.world.now_s, self.world.now_unix_s)
            if self.loop.over:
                self.loop.close()
                self.lease.release()
                self.alive = False
        except Killed:
            self.alive = False


@dataclass
class World:
    """One job, its bucket, its machines, its controllers."""

    pools: tuple[str, ...] = ("local=2@1.0",)
    chunks: int = 8
    chunk_s: float = 4.0
    boot_s: float = 2.0
    start_s: float = 2.0
    ingest_fails: ShuntServeError | None = None
    operations: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    now_s: float = 1000.0
    broken: set[str] = field(default_factory=set)
    """Machines on which no engine starts."""
    controllers: list[Controller] = field(default_factory=list)
    reports: int = 0
    forsaken: int = 0
    """Machines nobody can end: their agent hangs, and the provider does not answer."""

    def __post_init__(self) -> None:
        self.bucket = memory_bucket()
        self.rng = random.Random(self.seed)
        values = {"pools": self.pools, "lease_s": 6.0, "spending_lease_s": 30.0, "approval": "never", **self.operations}
        operations = replace(JOB.operations, **values)
        self.job: ResolvedJob = submit_resolved(self.bucket, replace(JOB, operations=operations))
        self.provider = PretendProvider(self)

    # -- time ------------------------------------------------------------------------------------------------------

    @property
    def now_unix_s(self) -> float:
        return BEGAN_UNIX_S + self.now_s

    def controller(self, **more: Any) -> Controller:
        """Start one."""
        self.controllers.append(Controller(self, **more))
        return self.controllers[-1]

    def step(self) -> None:
        """Half a second of everything."""
        self.now_s += STEP_S
        for controller in self.controllers:
            controller.tick()
        for machine in list(self.provider.rooms.values()):
            machine.tick()

    def run(self, until: Callable[[], bool], limit_s: float = 600.0) -> None:
        """Step until it is so; fails when it never is."""
        end_s = self.now_s + limit_s
        while not until():
            assert self.now_s < end_s, f"not within {limit_s} s; status: {self.words()}"
            self.step()

    def words(self) -> str:
        """Where things stand, for a failing test."""
        acting = [(one.loop.state, one.lease.epoch, one.alive) for one in self.controllers]
        nodes = {
            room.launch.id: (room.running, room.agent and room.agent.state) for room in self.provider.rooms.values()
        }
        return f"t={self.now_s} controllers={acting} open={len(self.open_chunks())} nodes={nodes}"

    # -- the job -----------------------------------------------------------------------------------------------------

    @property
    def all_chunks(self) -> list[str]:
        return [keys.chunk_id(index) for index in range(self.chunks)]

    def open_chunks(self) -> list[str]:
        done = {info.key.rsplit("/", 1)[1] for info in self.bucket.list(keys.results_page(self.job.job_id, "00000"))}
        return [chunk for chunk in self.all_chunks if f"{chunk}.parquet" not in done]

    def commit(self, chunk: str, writer: str, stopped: StopCode | None = None) -> None:
        body = f"{writer} {uuid.uuid4().hex} {'' if stopped is None else stopped.value}".encode()
        self.bucket.create(keys.result(self.job.job_id, chunk), body)

    def results(self) -> list[str]:
        """Who committed each chunk, or why nobody did."""
        found = [self.bucket.get(keys.result(self.job.job_id, chunk)).decode().split() for chunk in self.all_chunks]
        return [words[2] if len(words) == 3 else words[0] for words in found]

    def work(self, bucket: Bucket) -> Work:
        job_id = self.job.job_id

        def ingest(job: ResolvedJob) -> Manifest:
            if self.ingest_fails is not None:
                raise self.ingest_fails
            attempt = uuid.uuid4().hex
            refs = [ChunkRef(chunk, "c", "0" * 64, ROWS_PER_CHUNK, 10) for chunk in self.all_chunks]
            page = manifests.put_page(bucket, job_id, attempt, 0, refs)
            rows = len(refs) * ROWS_PER_CHUNK
            manifest = Manifest(attempt, (page,), (), rows, rows, 0, 10, ("f",))
            manifests.create_manifest(bucket, job_id, manifest)
            return manifest

        def finalize(job: ResolvedJob, manifest: Manifest) -> Final:
            stopped = [value for value in self.results() if value in set(StopCode)]
            rows = len(stopped) * ROWS_PER_CHUNK
            code = StopCode(stopped[0]) if stopped else None
            counts = RowCounts(manifest.rows_in, manifest.rows_in - rows, rows, rows, code)
            end = Final(
                job_id, terminal_state(counts), counts, Totals(), "parquet", (), (), (), 0, 0, "", uuid.uuid4().hex
            )
            bucket.create(keys.final(job_id), final.encode(end))
            found = final.load_final(bucket, job_id)
            assert found is not None
            return found

        def report(*_: object) -> None:
            self.reports += 1

        return Work(
            current=lambda: current_job(bucket, job_id),
            ingest=ingest,
            finalize=finalize,
            report=report,
            predict=lambda job, manifest, wants: None,
            closer=lambda job: PretendCloser(self, "closer"),  # type: ignore[arg-type,return-value]
        )

    # -- what is so ----------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Every controller has left."""
        return all(not one.alive for one in self.controllers)

    @property
    def completed(self) -> bool:
        """Its end is written, and nobody is at work on it any more."""
        return self.ended and final.load_final(self.bucket, self.job.job_id) is not None

    def launches(self) -> dict[str, fleet_records.LaunchRecord]:
        return fleet_records.load_launches(self.bucket, self.job.job_id)

    def spending_writer(self) -> str | None:
        try:
            key = keys.spending(self.job.job_id)
            return str(claims.load(key, self.bucket.get(key))["writer"])
        except NotFound:
            return None

    def machine(self, number: int) -> PretendMachine:
        return self.provider.rooms[f"n{number:04d}"]
