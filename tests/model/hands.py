"""The ledger's world for the state machines: real store code, keys, encodings, procedures and tenures; faults between.

A `Hand` is a worker taken apart, so that a machine can do every single thing it does at any moment, in any order. What
it decides comes from `Rules`; what it writes goes through the honest create of the store; `World` judges all that
appears in the bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shuntserve.core.create import Settle
from shuntserve.core.ledger import Claim, Rules, Watch
from shuntserve.core.states import StopCode
from shuntserve.engine.port import Delta
from shuntserve.errors import Unavailable
from shuntserve.job import checkpoints, claims, ops, procedures
from shuntserve.job.tenure import Tenure
from shuntserve.sim.job import PutJob, SimRow, put_job
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from tests.model.ledger_state import Habits
from tests.model.network import Answer, Broken, Line, Network
from tests.model.promises import DURABLE, LIVING, ONCE, ONE_PLACE, ONE_RESULT, TAKEOVER, TENANT, WHOLE

JOB = "job"
ASIDE = ".aside"


@dataclass(eq=False)
class Hold:
    """A chunk in the hands of one incarnation."""

    tenure: Tenure
    incarnation: str
    gap: bool = False
    pending: tuple[str, Sequence[checkpoints.Entry]] | None = None


@dataclass(eq=False)
class Hand:
    """One worker. Its clock is ahead of the world's by `offset_s`."""

    number: int
    line: Line
    offset_s: float = 0.0
    incarnation: str = ""
    renewed_from_s: float | None = None
    flying: tuple[float, bool] | None = None
    """A renewal under way: when it began, and whether it has landed."""
    progress: int = 0
    held: dict[str, Hold] = field(default_factory=dict)
    view: claims.PageView | None = None
    holders: dict[str, str] = field(default_factory=dict)
    watches: dict[str, Watch | None] = field(default_factory=dict)
    reading: tuple[float, tuple[str, ...], dict[str, Any] | None] | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """Which part of the world a machine stirs most."""

    clocked: bool = True
    workers: int = 2
    chunks: int = 1
    rows: int = 2
    length: int = 3
    answers: tuple[Answer, ...] = (Answer.GOOD,)
    careless: bool = False
    """Checkpoints may be given up, as the real loop never does."""
    slow: bool = False
    """Renewals and reads take time."""
    idle: bool = False
    """Chunks are held, and nothing becomes of them."""
    endless: bool = False
    """Nothing is ever committed, so that there are many epochs."""
    cuts: bool = False
    kills: bool = False
    cancels: bool = False
    must_finish: bool = False


class World:
    """Bucket, workers, time, and the promises. Everything raises `Broken` when one is not kept."""

    def __init__(self, profile: Profile, rules: Rules, settle: Settle, habits: Habits) -> None:
        self.profile = profile
        self.rules = rules
        self.habits = habits
        self.now_s = 100.0
        self.cancelled = False
        self.network = Network(settle, self._stored)
        self._named = 0
        self._previous: dict[int, int] = {}
        """Token → the token it was generated after."""
        self._durable: dict[tuple[str, int, int], int] = {}
        """(chunk, epoch, row) → tokens known to be durable by who wrote them."""
        self._entered: set[tuple[str, str, int]] = set()
        self._results: dict[str, bytes] = {}
        self.job = put_plain_job(self.network.bucket, profile.chunks, profile.rows)
        self.page = next(iter(self.job.pages))
        self.hands = [Hand(number, Line(self.network)) for number in range(profile.workers)]
        self.zombies: list[tuple[Line, Hold]] = []
        for hand in self.hands:
            self._become_new(hand)

    # -- names and time --------------------------------------------------------------------------------------------

    def _become_new(self, hand: Hand) -> None:
        self._named += 1
        hand.incarnation = f"{self._named:032x}"
        hand.renewed_from_s = hand.flying = hand.reading = None
        hand.watches = {}
        hand.held = {}

    def clock(self, hand: Hand) -> float:
        return self.now_s + hand.offset_s

    def lapsed(self, hand: Hand) -> bool:
        """Whether this hand, asking its clock now, would stop."""
        began_s = hand.renewed_from_s
        return began_s is None or self.rules.must_fence(began_s, self.clock(hand))

    def may_act(self, hand: Hand) -> bool:
        """Fence when the lease has lapsed; False when there is none."""
        if not self.profile.clocked:
            return True
        if hand.renewed_from_s is not None and self.lapsed(hand):
            self.fence(hand)
        return hand.renewed_from_s is not None

    def fence(self, hand: Hand) -> None:
        """Drop everything and go on as somebody new; what was under way goes on as a zombie."""
        self.zombies += [(hand.line, hold) for hold in hand.held.values()]
        self._become_new(hand)

    def kill(self, hand: Hand, *, reaped: bool) -> None:
        """The process is gone, its requests with it; another one starts in its place."""
        if reaped:
            body = claims.worker_body(hand.incarnation, -1, gone=True)
            self.network.bucket.put(keys.worker(JOB, hand.incarnation), body)
        self._become_new(hand)
        hand.view, hand.holders, hand.line.cut = None, {}, False

    # -- lease -----------------------------------------------------------------------------------------------------

    def begin_renewal(self, hand: Hand) -> None:
        self.may_act(hand)
        hand.flying = (self.clock(hand), False)

    def land_renewal(self, hand: Hand) -> None:
        """The renewal under way reaches the bucket, whatever its worker does meanwhile."""
        assert hand.flying is not None
        began_s = hand.flying[0]
        hand.progress = max(hand.progress + 1, int(began_s))
        hand.flying = None
        body = claims.worker_body(hand.incarnation, hand.progress)
        try:
            ops.run(hand.line, procedures.put(keys.worker(JOB, hand.incarnation), body))
        except Unavailable:
            return
        hand.flying = (began_s, True)

    def acknowledge(self, hand: Hand) -> None:
        """The worker learns that its renewal has landed; it asks its clock about the old lease first."""
        if self.habits.checks_lease_before_ack:
            self.may_act(hand)
        if hand.flying is None or not hand.flying[1]:
            return
        hand.renewed_from_s, hand.flying = hand.flying[0], None
        for other in self.hands:
            if other is not hand and self.rules.is_dead(other.watches.get(hand.incarnation)):
                self._must_be_buried_rightly(hand.incarnation, by=other)

    def renew(self, hand: Hand) -> None:
        self.begin_renewal(hand)
        self.land_renewal(hand)
        if hand.flying is not None:
            self.acknowledge(hand)

    # -- watching --------------------------------------------------------------------------------------------------

    def survey(self, hand: Hand) -> None:
        try:
            hand.view = ops.run(hand.line, claims.survey(JOB, self.page, hand.holders))
        except Unavailable:
            return

    def ask(self, hand: Hand) -> None:
        """Send off a read of the counters of all who hold what this worker sees."""
        if hand.view is None:
            return
        newest = [history[-1] for history in hand.view.claims.values()]
        others = sorted({claim.worker for claim in newest if not claim.released and claim.worker != hand.incarnation})
        hand.watches = {worker: hand.watches.get(worker) for worker in others}
        hand.reading = (self.clock(hand), tuple(others), None)

    def read(self, hand: Hand) -> None:
        """The bucket answers it."""
        assert hand.reading is not None
        asked_s, others, _ = hand.reading
        hand.reading = (asked_s, others, ops.run(hand.line, claims.read_workers(JOB, others)))

    def hear(self, hand: Hand) -> None:
        """The answer arrives, and the rules take it in."""
        assert hand.reading is not None
        asked_s, others, readings = hand.reading
        hand.reading = None
        stamp_s = asked_s if self.habits.stamps_reads_when_asked else self.clock(hand)
        for worker in others:
            if worker not in hand.watches:
                continue
            reading = None if readings is None else readings[worker]
            hand.watches[worker] = self.rules.observe(hand.watches[worker], reading, stamp_s)
            if self.rules.is_dead(hand.watches[worker]):
                self._must_be_buried_rightly(worker, by=hand)

    def watch(self, hand: Hand) -> None:
        self.ask(hand)
        if hand.reading is not None:
            self.read(hand)
            self.hear(hand)

    def _must_be_buried_rightly(self, worker: str, by: Hand) -> None:
        for hand in self.hands:
            if hand.incarnation == worker and not self.lapsed(hand):
                raise Broken(LIVING, f"worker {by.number} holds worker {hand.number} dead")

    # -- claiming --------------------------------------------------------------------------------------------------

    def candidates(self, hand: Hand) -> list[tuple[str, int]]:
        """What this worker may claim by what it has seen, old as that may be."""
        if hand.view is None:
            return []
        dead = {worker for worker, watch in hand.watches.items() if self.rules.is_dead(watch)}
        if not self.profile.clocked:
            dead = {claim.worker for history in hand.view.claims.values() for claim in history} - {hand.incarnation}
        found = []
        for ref in self.job.chunks:
            history = hand.view.claims.get(ref.chunk, ())
            if ref.chunk in hand.view.committed or ref.chunk in hand.held:
                continue
            mine = bool(history) and history[-1].worker == hand.incarnation and not history[-1].released
            if mine and self.habits.settles_unknown_claims:
                epoch: int | None = history[-1].epoch
            else:
                epoch = self.rules.next_epoch(history, dead)
            if epoch is not None:
                found.append((ref.chunk, epoch))
        return found

    def acquire(self, hand: Hand, chunk: str, epoch: int) -> None:
        """Claim and take over."""
        if not self.may_act(hand):
            return
        ref = next(ref for ref in self.job.chunks if ref.chunk == chunk)
        how = procedures.acquire if self.habits.looks_again_after_claim else acquire_carelessly
        try:
            found = ops.run(hand.line, how(JOB, ref, epoch, hand.incarnation, self.rules))
        except Unavailable:
            return
        if found is None:
            return
        if (hand.incarnation, chunk, epoch) in self._entered:
            raise Broken(ONCE, f"{hand.incarnation} works on epoch {epoch} of {chunk} again")
        self._entered.add((hand.incarnation, chunk, epoch))
        self._judge_takeover(chunk, epoch, found)
        tenure = Tenure(ref, epoch, found.table, found.priors, found.history, self.rules)
        if not self.habits.restates_taken_over:
            for progress in tenure.sequences.values():
                progress.written = len(progress.tokens)
                progress.texts_written = len(progress.texts)
        hand.held[chunk] = Hold(tenure, hand.incarnation)

    def _judge_takeover(self, chunk: str, epoch: int, found: procedures.Acquired) -> None:
        for row in range(self.profile.rows):
            prior = found.priors.get((row, 0))
            tokens = () if prior is None else prior.token_ids
            if not self.coherent(tokens):
                raise Broken(TAKEOVER, f"row {row} of {chunk} in epoch {epoch}: {tokens}")
            durable = max((self._durable.get((chunk, e, row), 0) for e in range(epoch)), default=0)
            if len(tokens) < durable and (prior is None or prior.finish_reason is None):
                raise Broken(DURABLE, f"row {row} of {chunk} in epoch {epoch}: {len(tokens)} of {durable} tokens")

    # -- working ---------------------------------------------------------------------------------------------------

    def generate(self, hold: Hold, most: Sequence[int]) -> None:
        """Each row gains up to so many tokens; a row of full length is finished."""
        tenure = hold.tenure
        tenure.take(len(tenure.waiting))
        for key, progress in list(tenure.open.items()):
            new: list[int] = []
            for _ in range(min(most[key[0]], self.profile.length - len(progress.tokens))):
                before = new[-1] if new else progress.tokens[-1] if progress.tokens else 0
                new.append(len(self._previous) + 1)
                self._previous[new[-1]] = before
            full = len(progress.tokens) + len(new) >= self.profile.length
            if new or full:
                tenure.apply(key, Delta(tenure.seq_id(key), new, finish_reason="length" if full else None))

    def checkpoint(self, line: Line, hold: Hold, giving_up: str) -> None:
        """Make durable what is not; `giving_up` says what a failure leads to."""
        tenure = hold.tenure
        if hold.pending is None:
            gains = tenure.gains()
            if not gains:
                return
            tenure.snapshot_written()
            hold.pending = (keys.checkpoint(JOB, tenure.chunk, tenure.epoch, tenure.next_checkpoint), gains)
            tenure.next_checkpoint += 1
        key, entries = hold.pending
        try:
            won = ops.run(line, procedures.checkpoint(key, entries, hold.incarnation))
        except Unavailable:
            if giving_up != "never":
                hold.pending, hold.gap = None, True
            if giving_up == "and using its number again":
                tenure.next_checkpoint -= 1
            return
        hold.pending = None
        hold.gap = hold.gap or not won
        if not hold.gap:
            for entry in entries:
                row = (tenure.chunk, tenure.epoch, entry.row)
                self._durable[row] = max(self._durable.get(row, 0), entry.start + len(entry.token_ids))

    def commit(self, line: Line, hold: Hold) -> bool:
        """Write the result if every row has ended; True when this hold is over."""
        tenure = hold.tenure
        elsewhere = False
        if not tenure.complete and self.cancelled:
            tenure.cancel(StopCode.CANCELLED)
            elsewhere = not self.habits.one_result_key
        if not tenure.complete:
            return False
        key = keys.result(JOB, tenure.chunk) + (ASIDE if elsewhere else "")
        line.overwrites = not self.habits.commits_by_create
        try:
            ops.run(line, procedures.commit(key, tenure.table, tenure.sequences, hold.incarnation))
        except Unavailable:
            return False
        finally:
            line.overwrites = False
        return True

    def release(self, hand: Hand, hold: Hold) -> None:
        key = keys.released(JOB, hold.tenure.chunk, hold.tenure.epoch)
        try:
            ops.run(hand.line, procedures.create(key, claims.release_body(hold.incarnation, "drained")))
        except Unavailable:
            return
        del hand.held[hold.tenure.chunk]

    # -- judging ---------------------------------------------------------------------------------------------------

    def coherent(self, tokens: Sequence[int]) -> bool:
        """Whether each token was generated after exactly the tokens before it."""
        return all(self._previous[token] == before for before, token in zip((0, *tokens), tokens, strict=False))

    def _stored(self, key: str, body: bytes) -> None:
        """Judge an object that has just appeared."""
        if key.startswith(keys.claims_page(JOB, self.page)) and not key.endswith(claims.RELEASED):
            chunk, name = key.rsplit("/", 2)[1:]
            self._judge_claim(chunk, int(name))
        elif key.startswith(keys.results_page(JOB, self.page)):
            self._judge_result(key, body)

    def _judge_claim(self, chunk: str, epoch: int) -> None:
        if not self.profile.clocked or epoch == 0:
            return
        bucket = self.network
        if bucket.find(keys.result(JOB, chunk)) or bucket.find(keys.released(JOB, chunk, epoch - 1)):
            return
        before = bucket.find(keys.claim(JOB, chunk, epoch - 1))
        holder = None if before is None else claims.load("", before)["writer"]
        if any(hand.incarnation == holder and not self.lapsed(hand) for hand in self.hands):
            raise Broken(TENANT, f"epoch {epoch} of {chunk} begins while {holder} still acts")

    def _judge_result(self, key: str, body: bytes) -> None:
        result = key.removesuffix(ASIDE)
        if self.network.find(result) and self.network.find(result + ASIDE):
            raise Broken(ONE_PLACE, key)
        lines = pq.read_table(pa.BufferReader(body)).to_pylist()
        chunk = result.rsplit("/", 1)[1].removesuffix(".parquet")
        first = self.profile.rows * int(chunk)
        if [line["source_row"] for line in lines] != list(range(first, first + self.profile.rows)):
            raise Broken(WHOLE, f"{key}: not every row once")
        for line in lines:
            ended = line["code"] == StopCode.CANCELLED or len(line["output_token_ids"]) == self.profile.length
            if not ended or not self.coherent(line["output_token_ids"]):
                raise Broken(WHOLE, f"{key}: {line}")

    def judge_results(self) -> None:
        """No result has changed since it was first seen."""
        for ref in self.job.chunks:
            body = self.network.find(keys.result(JOB, ref.chunk))
            if body != self._results.setdefault(ref.chunk, body or b"") and self._results[ref.chunk]:
                raise Broken(ONE_RESULT, ref.chunk)
            self._results[ref.chunk] = body or b""

    @property
    def finished(self) -> bool:
        return all(self.network.find(keys.result(JOB, ref.chunk)) is not None for ref in self.job.chunks)

    def run_calmly(self, rounds: int) -> None:
        """Nothing goes wrong any more and everybody does what a worker does; ends when all is committed."""
        for hand in self.hands:
            hand.line.cut, hand.flying, hand.reading = False, None, None
            hand.line.script.clear()
        for _ in range(rounds):
            if self.finished:
                return
            for hand in self.hands:
                self.renew(hand)
                self.survey(hand)
                self.watch(hand)
                for chunk, epoch in self.candidates(hand)[:1]:
                    self.acquire(hand, chunk, epoch)
                for chunk, hold in list(hand.held.items()):
                    self.generate(hold, [self.profile.length] * self.profile.rows)
                    if self.commit(hand.line, hold):
                        del hand.held[chunk]
            self.now_s += 3.0


def put_plain_job(bucket: Bucket, chunks: int, rows: int) -> PutJob:
    """Write a job of equal rows, so many a chunk."""
    job, objects = _plain_job(chunks, rows)
    for key, body in objects:
        bucket.put(key, body)
    return job


@cache
def _plain_job(chunks: int, rows: int) -> tuple[PutJob, tuple[tuple[str, bytes], ...]]:
    bucket = open_bucket("memory://plain-job")
    for info in list(bucket.list("")):
        bucket.delete(info.key)
    job = put_job(bucket, JOB, [SimRow(f"row-{n}", (1,), (), 0) for n in range(chunks * rows)], rows)
    return job, tuple((info.key, bucket.get(info.key)) for info in bucket.list(""))


def acquire_carelessly(
    job_id: str, ref: Any, epoch: int, worker: str, rules: Rules
) -> ops.Procedure[procedures.Acquired | None]:
    """`procedures.acquire` without its second look at what has become of the claim."""
    if not (yield ops.Create(keys.claim(job_id, ref.chunk, epoch), claims.claim_body(worker, ref.chunk, epoch))):
        return None
    priors = yield from checkpoints.load_priors(job_id, ref.chunk, epoch, rules)
    body: bytes = yield ops.Get(ref.key)
    return procedures.Acquired(pq.read_table(pa.BufferReader(body)), priors, (Claim(epoch, worker),))
