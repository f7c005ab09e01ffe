"""The states of the ledger's model: one chunk in the bucket, the workers around it, and what is under way between them.

Everything is small, immutable and free of absolute times: ages are counted in units of the owner's own clock and stop
at a cap, so that the number of states is finite without a horizon.

A token is a number that names its whole history: `token = previous token · (epochs + 1) + generating epoch + 1`. A
stream is coherent exactly if each token's history is the stream before it, whoever put it together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from shuntserve.core.ledger import Rules

SHORT_LEASE = Rules(lease_s=3.0, fence_fraction=2 / 3)

# phases of a worker; a dead one may later be reaped by its parent
IDLE, CLAIMED, WORKING, OUT, DEAD, REAPED = range(6)
PHASES = ("idle", "claimed", "working", "out", "dead", "reaped")

# kinds of writes
CLAIM, CHECKPOINT, COMMIT = range(3)
KINDS = ("claim", "checkpoint", "commit")

GHOST = 100
"""Writer codes: a worker's index, or GHOST + epoch for the fenced incarnation that held an epoch and never returns."""


class Row(NamedTuple):
    """One row in a holder's memory. `written` says that this epoch has a record of it."""

    tokens: tuple[int, ...] = ()
    finished: bool = False
    written: bool = False


class Op(NamedTuple):
    """A claim or commit under way. `put`: 0 before an attempt, else one plus its outcome's place in `PUTS`."""

    kind: int
    epoch: int
    rows: tuple[Row, ...] = ()
    cancelled: bool = False
    put: int = 0


class Lease(NamedTuple):
    """Ages of the newest acknowledged renewal and of one under way (-1: none), both from their beginning."""

    began: int
    flying: int = -1
    landed: bool = False


class Look(NamedTuple):
    """An observer's watch on the newest claim's holder. `current`: the bucket still shows the value it knows."""

    reads: int = 0
    since: int = 0
    current: bool = False
    buried: bool = False
    asked: int = -1
    span: int = 0
    """Age of `since` when the read under way was asked for."""
    answer: int = 0
    """0: none yet, 1: another value than before, 2: the same value."""
    answer_current: bool = False


class Worker(NamedTuple):
    """One worker. `cut` says that the store does not answer it at present."""

    phase: int = IDLE
    epoch: int = -1
    rows: tuple[Row, ...] = ()
    next_checkpoint: int = 0
    gap: bool = False
    op: Op | None = None
    lease: Lease | None = None
    look: Look | None = None
    cut: bool = False
    entered: int = -1
    seen: tuple[int, bool] | None = None
    """Number of claims and release of the newest one in an old look at the page (None: this look is fresh)."""


Records = tuple[tuple[int, int, tuple[int, ...], bool], ...]
"""(row, start, tokens, finished) of one checkpoint."""


class Stored(NamedTuple):
    """One checkpoint object. `ends`, for the promises only: (row, tokens) that its writer knew to be durable then."""

    n: int
    records: Records
    ends: tuple[tuple[int, int], ...]


class Late(NamedTuple):
    """A request whose sender has given up and that may still land. `body`: a checkpoint, or the rows of a commit."""

    kind: int
    writer: int
    epoch: int
    body: Any = ()
    cancelled: bool = False


class State(NamedTuple):
    """The whole world."""

    workers: tuple[Worker, ...]
    claims: tuple[tuple[int, bool], ...] = ()
    """(writer, released) per epoch."""
    checkpoints: tuple[tuple[Stored, ...], ...] = ()
    result: int | None = None
    """Who wrote it. What it holds is judged when it is written."""
    aside: int | None = None
    """A second place where rows could end; only a broken loop writes there."""
    air: tuple[Late, ...] = ()
    cancelled: bool = False
    mishaps: int = 0
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class Habits:
    """What the worker loop does for section 5 besides asking the rules; a test takes one away at a time."""

    stamps_reads_when_asked: bool = True
    checks_lease_before_ack: bool = True
    settles_unknown_claims: bool = True
    looks_again_after_claim: bool = True
    restates_taken_over: bool = True
    commits_by_create: bool = True
    one_result_key: bool = True


@dataclass(frozen=True, slots=True)
class Scope:
    """How small the world is."""

    workers: int = 2
    epochs: int = 3
    rows: int = 2
    length: int = 2
    early_ends: bool = False
    checkpoints: int = 2
    """Per epoch."""
    mishaps: int = 2
    """Lost replies, failed, repeated and late requests, outages and partitions, together."""
    trouble: frozenset[int] = frozenset({CLAIM, CHECKPOINT, COMMIT})
    """The kinds of writes that may meet with them; the others are one step each."""
    deaths: int = 0
    cancel: bool = False
    clocked: bool = False
    """Leases, watches and time are real; else anyone but oneself may be held dead at any moment (which allows more)."""
    slow_renewals: bool = False
    slow_reads: bool = False
    stale_looks: bool = False
    clock_units: tuple[int, ...] = ()
    """Units each worker's clock gains while one tick passes (default: one each)."""
    clock_offsets: tuple[int, ...] = ()
    """How far each worker's clock is ahead; no right rule may notice."""
    rules: Rules = SHORT_LEASE
    habits: Habits = Habits()


def coherent(tokens: tuple[int, ...], base: int) -> bool:
    """Whether each token was generated after exactly the tokens before it."""
    previous = 0
    for token in tokens:
        if token // base != previous:
            return False
        previous = token
    return True


def show(state: State, base: int) -> str:
    """One line: claims, checkpoints, result, workers."""
    claims = " ".join(f"{e}:{_writer(w)}{'·released' if r else ''}" for e, (w, r) in enumerate(state.claims)) or "-"
    stored = " ".join(
        f"{epoch}["
        + " ".join(f"#{one.n}" + "".join(_record(record, base) for record in one.records) for one in many)
        + "]"
        for epoch, many in enumerate(state.checkpoints)
        if many
    )
    parts = [f"claims {claims}"]
    if stored:
        parts.append(f"checkpoints {stored}")
    for name, writer in (("result", state.result), ("aside", state.aside)):
        if writer is not None:
            parts.append(f"{name} by {_writer(writer)}")
    if state.air:
        parts.append("in the air " + ", ".join(KINDS[late.kind] for late in state.air))
    parts += [f"w{index}={_worker(worker, base)}" for index, worker in enumerate(state.workers)]
    return " | ".join(parts)


def _writer(code: int) -> str:
    return f"w{code}" if code < GHOST else f"ghost{code - GHOST}"


def _tokens(tokens: tuple[int, ...], base: int) -> str:
    return "".join(chr(ord("a") + token % base - 1) for token in tokens)


def _record(record: tuple[int, int, tuple[int, ...], bool], base: int) -> str:
    row, start, tokens, finished = record
    return f"({row}@{start}:{_tokens(tokens, base)}{'.' if finished else ''})"


def _rows(rows: tuple[Row, ...], base: int) -> str:
    return "/".join(_tokens(row.tokens, base) + ("." if row.finished else "…") for row in rows)


def _worker(worker: Worker, base: int) -> str:
    text = PHASES[worker.phase]
    if worker.epoch >= 0:
        text += f" {worker.epoch} {_rows(worker.rows, base)}"
    if worker.op is not None:
        text += f" {KINDS[worker.op.kind]}-ing" + ("?" if worker.op.put else "")
    if worker.lease is not None:
        text += f" lease {worker.lease.began}"
        if worker.lease.flying >= 0:
            text += f"+{worker.lease.flying}{'landed' if worker.lease.landed else ''}"
    if worker.look is not None:
        look = worker.look
        text += f" watch {look.reads}r/{look.since}{'' if look.current else ' old'}{' DEAD' if look.buried else ''}"
        if look.asked >= 0:
            text += f" asked {look.asked}{('', ' other', ' same')[look.answer]}"
    return text + (" cut off" if worker.cut else "")
