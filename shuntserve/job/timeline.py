"""What a job went through, told while it happens: samples of its progress, and events, as small immutable objects.

Every process that watches a job writes parts of its own, `timeline/<writer>/<n>.json`; `read_timeline` merges them. Any
number of writers may overlap (a controller that was replaced and does not know it yet): all of them report the same
job, so more of them make the history denser, never wrong.

Size is bounded by thinning at the source: the longer a writer watches, the rarer are its samples (one in `elapsed /
400`), so a month takes a few thousand. A part is written every half minute and after each event, and not at all when
there is nothing new; a writer that is killed takes at most that half minute with it.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from shuntserve import telemetry
from shuntserve.errors import Corrupt, InvalidInput, Unavailable
from shuntserve.job.prefetch import prefetched
from shuntserve.job.watch import Snapshot
from shuntserve.store import json_objects, keys
from shuntserve.store.port import Bucket

SCHEMA_VERSION = 1

FLUSH_INTERVAL_S = 30.0
LEAST_SPACING_S = 1.0
SAMPLES_AN_E_FOLD = 400
"""Samples a writer keeps each time that the time it has watched grows e-fold."""
_QUIET_AFTER_EVENT_S = 1.0
"""Events that come together share a part."""
_SAMPLES_A_PART = 300
_EVENTS_A_PART = 50
_TEXT_LENGTH = 400
"""With it a part stays below 64 KB."""
_MOST_WAITING = 5_000
"""Events, and samples, kept while the bucket cannot be reached; beyond it the oldest events go first, and every second
sample."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A job at one moment, in sums over everything that ever worked on it. None: nobody knows."""

    rows_ended: int
    rejected: int
    tokens_generated: int
    tokens_durable: int
    workers: int
    nodes: int | None = None
    spent_usd: float | None = None
    usd_per_h: float | None = None

    @staticmethod
    def of(
        snapshot: Snapshot, *, nodes: int | None = None, spent_usd: float | None = None, usd_per_h: float | None = None
    ) -> Sample:
        """What a snapshot of the job says."""
        return Sample(
            rows_ended=snapshot.rows_ended,
            rejected=snapshot.rejected,
            tokens_generated=snapshot.total("tokens_generated"),
            tokens_durable=snapshot.total("tokens_durable"),
            workers=len(snapshot.live),
            nodes=nodes,
            spent_usd=spent_usd,
            usd_per_h=usd_per_h,
        )


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """Something of note. `kind` is one of the words of `KINDS`; `fields` hold ids, numbers and short codes."""

    unix_s: float
    kind: str
    node: str | None = None
    fields: Mapping[str, Scalar] = field(default_factory=dict)
    writer: str = ""


PHASES = ("ingest", "plan", "run", "finalize")
INTERRUPTIONS = ("notice", "rebalance", "node_lost", "worker_killed", "engine_lost")
KINDS = frozenset(
    {"phase_started", "phase_ended", "launch", "node_ready", "plan", "pause", "resume", "stop", *INTERRUPTIONS}
)


@dataclass(frozen=True, slots=True)
class History:
    """All that was told of a job, in the order in which it happened."""

    samples: tuple[tuple[float, Sample], ...] = ()
    events: tuple[TimelineEvent, ...] = ()

    @property
    def interruptions(self) -> tuple[TimelineEvent, ...]:
        """Events that cost, or announced to cost, a machine, a worker or an engine: each once, whoever else saw it."""
        found: dict[tuple[Scalar, ...], TimelineEvent] = {}
        for number, event in enumerate(self.events):
            if event.kind in INTERRUPTIONS:
                named = (event.kind, event.node, *(event.fields.get(name) for name in ("worker", "loss", "n")))
                found.setdefault(named if event.node or event.fields.get("worker") else (number,), event)
        return tuple(found.values())


class Timeline:
    """One writer's record. Never raises Unavailable: what could not be written waits for the next flush.

    `writer` names the process in the objects' keys; two that choose the same name disturb nothing.
    """

    def __init__(self, bucket: Bucket, job_id: str, writer: str) -> None:
        self._bucket = bucket
        self._job_id = job_id
        self._writer = writer
        self._uuid = uuid.uuid4().hex
        self._number = 0
        self._began_unix_s: float | None = None
        self._kept_unix_s: float | None = None
        self._newest: tuple[float, Sample] | None = None
        self._samples: list[tuple[float, Sample]] = []
        self._events: deque[TimelineEvent] = deque(maxlen=_MOST_WAITING)
        self._unsent: deque[bytes] = deque()
        self._flush_at_unix_s: float | None = None
        self._flushed_unix_s = 0.0

    def sample(self, now_unix_s: float, sample: Sample) -> None:
        """Take note of how the job stands; may be called as often as there is something to say."""
        self._start(now_unix_s)
        assert self._began_unix_s is not None
        self._newest = (now_unix_s, sample)
        spacing_s = max(LEAST_SPACING_S, (now_unix_s - self._began_unix_s) / SAMPLES_AN_E_FOLD)
        # A clock that was set back counts like one that has moved on.
        if self._kept_unix_s is None or abs(now_unix_s - self._kept_unix_s) >= spacing_s:
            self._keep_newest()

    def event(self, now_unix_s: float, kind: str, node: str | None = None, **fields: Scalar) -> None:
        """Take note of something; the next flush writes it. Texts are cut to a few hundred characters."""
        if kind not in KINDS:
            raise ValueError(f"no event of a timeline is called {kind!r}")
        self._start(now_unix_s)
        short = {name: value[:_TEXT_LENGTH] if isinstance(value, str) else value for name, value in fields.items()}
        self._events.append(TimelineEvent(now_unix_s, kind, node, short, self._writer))
        if not self._unsent and self._flush_at_unix_s is not None:  # in an outage, an event brings no attempt forward
            soon_unix_s = max(now_unix_s, self._flushed_unix_s + _QUIET_AFTER_EVENT_S)
            self._flush_at_unix_s = min(self._flush_at_unix_s, soon_unix_s)

    def flush(self, now_unix_s: float, force: bool = False) -> None:
        """Write what is due: call it at every tick. `force`: whatever there is, the newest sample included (the end).

        May take as long as one create (a minute, in an outage); the next attempt then is half a minute away.
        """
        if force:
            self._keep_newest()
        elif self._flush_at_unix_s is None or now_unix_s < self._flush_at_unix_s <= now_unix_s + FLUSH_INTERVAL_S:
            return
        self._flush_at_unix_s = now_unix_s + FLUSH_INTERVAL_S
        self._flushed_unix_s = now_unix_s
        try:
            while self._unsent or self._pack():
                # The name may be somebody else's part already: ours then takes the next number.
                if self._bucket.create(keys.timeline_part(self._job_id, self._writer, self._number), self._unsent[0]):
                    self._unsent.popleft()
                self._number += 1
        except Unavailable as error:  # unknown outcome: the same bytes go to the same key again
            telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, what="timeline", job=self._job_id, error=str(error))

    def _start(self, now_unix_s: float) -> None:
        if self._began_unix_s is None:
            self._began_unix_s = now_unix_s
        if self._flush_at_unix_s is None:
            self._flush_at_unix_s = now_unix_s + FLUSH_INTERVAL_S

    def _keep_newest(self) -> None:
        if self._newest is None or self._newest[0] == self._kept_unix_s:
            return
        self._samples.append(self._newest)
        self._kept_unix_s = self._newest[0]
        if len(self._samples) > _MOST_WAITING:
            self._samples = self._samples[::2]

    def _pack(self) -> bool:
        """Make parts of what is pending; only once earlier ones are written: what waits unpacked can still be thinned.

        False when nothing is.
        """
        while self._samples or self._events:
            samples, self._samples = self._samples[:_SAMPLES_A_PART], self._samples[_SAMPLES_A_PART:]
            events = [self._events.popleft() for _ in range(min(_EVENTS_A_PART, len(self._events)))]
            self._unsent.append(_encode(self._uuid, samples, events))
        return bool(self._unsent)


def read_timeline(bucket: Bucket, job_id: str) -> History:
    """Everything all writers have told so far, merged in time. Raises what the bucket raises.

    A part that cannot be read is left out, which is logged: no job stands still because its history has a gap.
    """
    prefix = keys.timeline(job_id)
    names = (info.key for info in bucket.list(prefix))
    samples: list[tuple[float, Sample]] = []
    events: list[TimelineEvent] = []
    for key, body in prefetched(names, lambda key: (key, bucket.get(key))):
        try:
            part_samples, part_events = _decode(key, body)
        except (Corrupt, InvalidInput) as error:
            telemetry.emit(telemetry.Event.TIMELINE_UNREADABLE, job=job_id, error=str(error))
            continue
        samples += part_samples
        events += part_events
    samples.sort(key=lambda one: one[0])
    events.sort(key=lambda one: one.unix_s)
    return History(tuple(samples), tuple(events))


def _encode(writer: str, samples: Sequence[tuple[float, Sample]], events: Sequence[TimelineEvent]) -> bytes:
    value = {
        "samples": [[round(unix_s, 3), *astuple(sample)] for unix_s, sample in samples],
        "events": [
            {"unix_s": round(event.unix_s, 3), "kind": event.kind, "node": event.node, "fields": dict(event.fields)}
            for event in events
        ],
    }
    return json_objects.dumps(value, schema_version=SCHEMA_VERSION, writer=writer)


def _decode(key: str, body: bytes) -> tuple[list[tuple[float, Sample]], list[TimelineEvent]]:
    value: dict[str, Any] = json_objects.loads(key, body, schema_version=SCHEMA_VERSION)
    writer = key.rsplit("/", 2)[1]
    try:
        samples = [(float(unix_s), Sample(*numbers)) for unix_s, *numbers in value["samples"]]
        events = [
            TimelineEvent(float(one["unix_s"]), one["kind"], one["node"], one["fields"], writer)
            for one in value["events"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(key, f"is not a part of a timeline: {error}", "remove it; only the report misses it") from error
    return samples, events
