"""One row run again by itself, with its stored prompt, parameters and seeds, and compared with what was stored.

Equal output is what the same engine on the same hardware promises where its arithmetic does not depend on what else is
in the batch; the fingerprint says which engine this one was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shuntserve.engine.port import Delta, Engine, EngineLost, EngineReady, LossKind, Refused, SequenceRequest
from shuntserve.errors import InvalidInput, Unavailable
from shuntserve.job.row_view import RowView, Sample
from shuntserve.job.tenure import ENGINE_CRASH

_POLL_S = 0.2


@dataclass(slots=True)
class Replayed:
    """One sample, run again."""

    index: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    code: str | None = None
    message: str | None = None
    same: bool | None = None
    """Whether it equals what is stored; of an unfinished or rejected one, whether it begins with that. None: nothing is
    stored."""
    differs_at: int | None = None
    """The first token that is another."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What running the row again gave. `crashed`: how the engine was lost over it."""

    samples: tuple[Replayed, ...]
    fingerprint: Mapping[str, str]
    crashed: str | None = None
    crashed_before: bool = False
    """The row is stored as one that no engine survives."""

    @property
    def same(self) -> bool:
        """Everything that is stored came out again; of a row that crashed its engine, the crash."""
        if self.crashed_before or self.crashed is not None:
            return self.crashed_before and self.crashed is not None
        return all(sample.same is not False for sample in self.samples)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"same": self.same, **asdict(self)}


def replay(engine: Engine, view: RowView) -> Replay:
    """Start the engine, run every sample of the row, stop the engine. Blocks until then.

    Raises InvalidInput for a row that ingest refused and for an engine that can never start, Unavailable when the
    engine is lost for reasons that are not the row's.
    """
    if view.chunk is None or view.seed is None:
        raise InvalidInput(
            f"row {view.source_file}:{view.source_row}",
            f"was refused before it had a prompt: {view.message}",
            "mend it",
        )
    samples = {str(index): Replayed(index) for index in range(view.n)}
    requests = [
        SequenceRequest(name, view.prompt_token_ids, {**(view.params or {}), "seed": view.seed + one.index})
        for name, one in samples.items()
    ]
    fingerprint: Mapping[str, str] = {}
    crashed: str | None = None
    try:
        engine.start()
        while crashed is None and any(one.finish_reason is None and one.code is None for one in samples.values()):
            for event in engine.poll(_POLL_S):
                match event:
                    case EngineReady():
                        fingerprint = dict(event.fingerprint)
                        engine.submit(requests)
                    case Delta(seq_id):
                        _take(samples[seq_id], event)
                    case Refused(seq_id, code, message):
                        samples[seq_id].code, samples[seq_id].message = code, message
                    case EngineLost():
                        crashed = _loss(event, ready=bool(fingerprint))
    finally:
        engine.stop()
    stored = {sample.index: sample for sample in view.samples}
    for one in samples.values():
        _compare(one, stored.get(one.index))
    return Replay(tuple(samples.values()), fingerprint, crashed, view.code == ENGINE_CRASH)


def _take(one: Replayed, delta: Delta) -> None:
    one.token_ids.extend(delta.token_ids)
    one.text += delta.text
    one.finish_reason = delta.finish_reason


def _loss(event: EngineLost, *, ready: bool) -> str:
    if event.kind is LossKind.INVALID:
        raise InvalidInput("engine", f"does not start: {event.detail}", "")
    if event.kind is LossKind.KILLED or not ready:
        raise Unavailable("engine", f"was lost: {event.detail}", "try again")
    return event.detail


def _compare(one: Replayed, stored: Sample | None) -> None:
    if stored is None:
        return
    before, now = list(stored.token_ids), one.token_ids
    whole = stored.finish_reason is not None
    length = max(len(before), len(now)) if whole else len(before)
    one.differs_at = next(
        (at for at in range(length) if at >= len(before) or at >= len(now) or before[at] != now[at]), None
    )
    one.same = one.differs_at is None and (not whole or stored.finish_reason == one.finish_reason)
