"""The ledger rules of design section 5: who may work on a chunk, and what is known of its rows.

All of it is pure: callers read the bucket, ask a rule, and write what it says. `Rules` gathers the decisions as
methods, so that a test can take one rule away and watch the model checker, the state machine and the simulator find
the damage.

One deviation from the design's wording on poison rows: the in-flight ids need no object of their own before
submission. The engine lives in processes apart from the worker's, so the worker survives every engine crash and
itself records, in the release of each chunk it held, which rows were in the engine. If worker and engine die together
it was a kill or a host loss, which by the same section does not count. The claim, durable before any row is
submitted, already names the superset.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

SequenceKey = tuple[int, int]
"""A sequence of a chunk: (row index in the chunk, sample index)."""


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What was in the engine when it crashed, seen from one chunk.

    `in_flight` are this chunk's rows, in the order in which they were admitted. `alone` says that no row of any other
    chunk was in the engine, so that the culprit is among them.
    """

    in_flight: tuple[int, ...]
    alone: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """One epoch of a chunk as the bucket shows it."""

    epoch: int
    worker: str
    released: bool = False
    crash: CrashReport | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """Consecutive successful reads of one worker's progress counter that all showed the same value.

    The value stood still at least from `still_since_s` to `still_until_s`.
    """

    progress: int
    still_since_s: float
    still_until_s: float
    reads: int
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """A successful read of a worker's object. An absent object reads as progress -1. `gone`: whoever reaped its
    process said so.
    """

    progress: int
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """What one sequence gained by one checkpoint; `start` is the absolute index of `tokens[0]` in its output."""

    sequence: SequenceKey
    start: int
    tokens: tuple[int, ...]
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """A sequence's output as far as one epoch's checkpoints prove it."""

    epoch: int
    tokens: tuple[int, ...]
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """The decisions. Times are seconds on the caller's own monotonic clock; nobody else's clock enters."""

    lease_s: float = 15.0
    fence_fraction: float = 0.8
    lone_crashes_to_condemn: int = 2

    # -- claim -----------------------------------------------------------------------------------------------------

    def next_epoch(self, history: Sequence[Claim], dead: Collection[str]) -> int | None:
        """The epoch that may be created now, or None while the newest one is somebody's who may be alive."""
        if not history:
            return 0
        newest = history[-1]
        if newest.released or newest.worker in dead:
            return newest.epoch + 1
        return None

    def observe(self, watch: Watch | None, reading: Reading | None, asked_s: float) -> Watch | None:
        """The watch after one attempt to read a worker's counter; a failed read (None) restarts the count.

        `asked_s` is the observer's clock before this read was sent off; the next is sent after the last was answered.
        When the value was really read lies somewhere between asking and answer, and either may be far off (a slow
        store, an observer stopped in between). So the count runs from the asking of the *second* equal read, when
        the first had surely seen the value, to the asking of the newest: three reads at least.
        """
        if reading is None:
            return None
        if watch is None or watch.progress != reading.progress:
            return Watch(reading.progress, asked_s, asked_s, 1, reading.gone)
        since_s = asked_s if watch.reads == 1 else watch.still_since_s
        return Watch(watch.progress, since_s, asked_s, watch.reads + 1, reading.gone)

    def is_dead(self, watch: Watch | None) -> bool:
        """True when the counter stood still for the lease (which takes three reads), or its parent reaped it."""
        if watch is None:
            return False
        return watch.gone or watch.still_until_s - watch.still_since_s >= self.lease_s

    def must_fence(self, last_renewal_began_s: float, now_s: float) -> bool:
        """True when others may soon hold this worker dead: it must stop working on what it has claimed.

        An observer counts the lease from a read that came after the renewal began, so a worker that stops before
        `renewal began + lease` has stopped before anyone can bury it; the fraction leaves room for writes under way
        and for clocks that run at different speeds. Ask this *before* counting a renewal whose acknowledgement has
        just come in: after a long pause it may have landed too late to be seen.
        """
        return now_s - last_renewal_began_s >= self.lease_s * self.fence_fraction

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def contiguous(self, numbers: Iterable[int]) -> list[int]:
        """The checkpoint numbers of one epoch that may be read: 0, 1, 2 … to the first gap."""
        usable: list[int] = []
        for n in sorted(numbers):
            if n != len(usable):
                break
            usable.append(n)
        return usable

    def joins(self, length: int | None, start: int) -> bool:
        """Whether a record that starts at `start` continues a stream of `length` tokens (None: first record of its
        epoch).
        """
        return start == (0 if length is None else length)

    def replay(self, epoch: int, checkpoints: Sequence[Sequence[Record]]) -> dict[SequenceKey, Stream]:
        """The streams that one epoch's readable checkpoints prove, each up to its first gap."""
        tokens: dict[SequenceKey, list[int]] = {}
        finished: set[SequenceKey] = set()
        torn: set[SequenceKey] = set()
        for records in checkpoints:
            for record in records:
                key = record.sequence
                so_far = tokens.get(key)
                if key in torn or not self.joins(None if so_far is None else len(so_far), record.start):
                    torn.add(key)
                    continue
                tokens.setdefault(key, []).extend(record.tokens)
                if record.finished:
                    finished.add(key)
        return {key: Stream(epoch, tuple(ids), key in finished) for key, ids in tokens.items()}

    def choose(self, epochs: Iterable[Mapping[SequenceKey, Stream]]) -> dict[SequenceKey, Stream]:
        """For each sequence ONE epoch's stream: a finished one, else the longest, else the newest. Streams are never
        spliced.
        """
        best: dict[SequenceKey, Stream] = {}
        for streams in epochs:
            for key, stream in streams.items():
                other = best.get(key)
                if other is None or self.preference(stream) > self.preference(other):
                    best[key] = stream
        return best

    def preference(self, stream: Stream) -> tuple[bool, int, int]:
        """Order of streams of one sequence; larger is taken."""
        return (stream.finished, len(stream.tokens), stream.epoch)

    def record_start(self, tokens_written_this_epoch: int | None) -> int:
        """Where a sequence's next record starts: 0 for its first in this epoch (it restates everything), else where
        it ended.
        """
        return 0 if tokens_written_this_epoch is None else tokens_written_this_epoch

    # -- poison rows -----------------------------------------------------------------------------------------------

    def suspects(self, history: Sequence[Claim], finished: Collection[int]) -> tuple[int, ...]:
        """Rows of the newest crash that have not finished since, in admission order; none of them may run with
        others.
        """
        for claim in reversed(history):
            if claim.crash is not None:
                condemned = self.condemned(history)
                return tuple(row for row in claim.crash.in_flight if row not in finished and row not in condemned)
        return ()

    def condemned(self, history: Sequence[Claim]) -> frozenset[int]:
        """Rows that, alone in an engine, crashed it often enough to be rejected."""
        lone: dict[int, int] = {}
        for claim in history:
            if claim.crash is not None and claim.crash.alone and len(claim.crash.in_flight) == 1:
                row = claim.crash.in_flight[0]
                lone[row] = lone.get(row, 0) + 1
        return frozenset(row for row, crashes in lone.items() if crashes >= self.lone_crashes_to_condemn)

    def trial(self, suspects: Sequence[int]) -> tuple[int, ...]:
        """Which suspects to run next, by themselves: the half admitted last: what is new is likeliest to blame."""
        return tuple(suspects[len(suspects) // 2 :])
