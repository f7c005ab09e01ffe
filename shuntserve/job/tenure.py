"""One worker's hold on one chunk: its rows, what they have so far, and what of it is durable."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from shuntserve.core.ledger import Claim, CrashReport, Rules, SequenceKey
from shuntserve.core.manifest import ChunkRef
from shuntserve.core.states import StopCode
from shuntserve.engine.port import Delta, SequenceRequest
from shuntserve.job.checkpoints import Entry, Prior

ENGINE_CRASH = "engine_crash"
STOP_MESSAGES = {
    StopCode.CANCELLED: "the job was cancelled before this row had ended",
    StopCode.BUDGET: "the job's budget was used up before this row had ended",
    StopCode.DEADLINE: "the job's deadline came before this row had ended",
}


@dataclass(slots=True)
class Progress:
    """One sequence of a held chunk. `tokens` is its whole output so far, `written` how much of it this epoch has made
    durable.
    """

    row: int
    sample_index: int
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[Any] | None = None
    resumed_count: int = 0
    tokens_kept: int = 0
    finish_reason: str | None = None
    stop_reason: str | None = None
    code: str | None = None
    message: str | None = None
    in_engine: bool = False
    restated: bool = False
    written: int | None = None
    texts_written: int = 0
    end_written: bool = False

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None or self.code is not None

    @property
    def dirty(self) -> bool:
        """Whether a checkpoint would have something to say."""
        if self.written is None:
            return self.restated or (self.finished and not self.end_written)
        return len(self.tokens) > self.written or (self.finished and not self.end_written)


class Tenure:
    """A chunk held in one epoch. Mutable, owned by one worker loop; nothing here does I/O."""

    def __init__(
        self,
        ref: ChunkRef,
        epoch: int,
        table: pa.Table,
        priors: Mapping[SequenceKey, Prior],
        history: Sequence[Claim],
        rules: Rules,
    ) -> None:
        self.ref = ref
        self.epoch = epoch
        self.table = table
        self._rules = rules
        self._history = tuple(history)
        self._prompts = table.column("prompt_token_ids").combine_chunks()
        self._params_json = table.column("params").to_pylist()
        self._seeds = table.column("seed").to_pylist()
        self._params: dict[str, dict[str, Any]] = {}
        samples = table.column("n").to_pylist()
        self.sequences: dict[SequenceKey, Progress] = {}
        self.open: dict[SequenceKey, Progress] = {}
        self.dirty: dict[SequenceKey, Progress] = {}
        self.waiting: deque[SequenceKey] = deque()
        self.admitted: dict[SequenceKey, Progress] = {}
        self.next_checkpoint = 0
        self._unwritten = 0
        self.tokens_kept = 0
        self.resumed = 0
        condemned = rules.condemned(history)
        for row, n in enumerate(samples):
            for sample in range(n):
                progress = self._take_over(row, sample, priors.get((row, sample)))
                self.sequences[row, sample] = progress
                if row in condemned and not progress.finished:
                    self.reject(progress, ENGINE_CRASH, "this row, alone in the engine, crashed it twice")
                if not progress.finished:
                    self.open[row, sample] = progress
                    self.waiting.append((row, sample))

    def _take_over(self, row: int, sample: int, prior: Prior | None) -> Progress:
        if prior is None:
            return Progress(row, sample)
        progress = Progress(
            row,
            sample,
            tokens=list(prior.token_ids),
            texts=[prior.text],
            logprobs=None if prior.logprobs is None else list(prior.logprobs),
            resumed_count=prior.resumed_count,
            tokens_kept=prior.tokens_kept,
            finish_reason=prior.finish_reason,
            stop_reason=prior.stop_reason,
            code=prior.code,
            message=prior.message,
        )
        if progress.tokens and not progress.finished:
            progress.resumed_count += 1
            progress.tokens_kept = max(progress.tokens_kept, len(progress.tokens))
            self.resumed += 1
            self.tokens_kept += len(progress.tokens)
        return progress

    @property
    def newly_condemned(self) -> tuple[int, ...]:
        """Rows that this epoch rejects because the engine does not survive them, until that is durable."""
        return tuple(dict.fromkeys(row for (row, _), one in self.dirty.items() if one.code == ENGINE_CRASH))

    @property
    def rows_finished(self) -> int:
        """Rows of which every sample has ended."""
        return len(self._params_json) - len({row for row, _ in self.open})

    # -- engine side -----------------------------------------------------------------------------------------------

    @property
    def chunk(self) -> str:
        return self.ref.chunk

    @property
    def complete(self) -> bool:
        """Every sequence has ended."""
        return not self.open

    @property
    def rows_rejected(self) -> int:
        """Rows that ended as rejects."""
        return len({row for (row, _), sequence in self.sequences.items() if sequence.code is not None})

    @property
    def sequences_out(self) -> int:
        """Sequences that ended with output (those of a rejected row's other samples included)."""
        return sum(sequence.code is None and sequence.finished for sequence in self.sequences.values())

    @property
    def length_finishes(self) -> int:
        """Sequences cut off by max_tokens."""
        return sum(sequence.finish_reason == "length" for sequence in self.sequences.values())

    def seq_id(self, key: SequenceKey) -> str:
        """The engine's name for a sequence in this epoch; deltas of an older epoch never match."""
        return f"{self.chunk}.{self.epoch}.{key[0]}.{key[1]}"

    def request(self, key: SequenceKey) -> SequenceRequest:
        """The engine request that starts or continues this sequence."""
        row, sample = key
        params = self._params.get(self._params_json[row])
        if params is None:
            params = self._params[self._params_json[row]] = json.loads(self._params_json[row])
        return SequenceRequest(
            seq_id=self.seq_id(key),
            prompt_token_ids=self._prompts[row].as_py(),
            params={**params, "seed": self._seeds[row] + sample},
            prior_token_ids=tuple(self.sequences[key].tokens),
        )

    def suspects(self) -> tuple[int, ...]:
        """Rows that may not run with others until they have finished or been condemned."""
        if not any(claim.crash is not None for claim in self._history):
            return ()
        unfinished = {row for row, _ in self.open}
        finished = {row for row, _ in self.sequences} - unfinished
        return self._rules.suspects(self._history, finished)

    def take(self, limit: int, only_rows: Collection[int] | None = None) -> list[SequenceRequest]:
        """Move up to `limit` waiting sequences (all of them, and only of these rows, for a trial) into the engine's
        hands.
        """
        chosen: list[SequenceKey] = []
        if only_rows is None:
            while self.waiting and len(chosen) < limit:
                chosen.append(self.waiting.popleft())
        else:
            chosen = [key for key in self.waiting if key[0] in only_rows]
            self.waiting = deque(key for key in self.waiting if key[0] not in only_rows)
        chosen = [key for key in chosen if key in self.open]
        for key in chosen:
            progress = self.sequences[key]
            progress.in_engine = True
            self.admitted[key] = progress
        return [self.request(key) for key in chosen]

    def apply(self, key: SequenceKey, delta: Delta) -> int:
        """Add what the engine generated; returns the number of new tokens."""
        progress = self.sequences[key]
        if progress.finished or not progress.in_engine:
            return 0
        if not progress.restated:
            progress.restated = True
            progress.texts = []
        progress.tokens.extend(delta.token_ids)
        if delta.text:
            progress.texts.append(delta.text)
        if delta.logprobs is not None:
            progress.logprobs = progress.logprobs or []
            progress.logprobs.extend(
                [dict(zip(("token_id", "logprob", "rank", "token"), one, strict=True)) for one in entries]
                for entries in delta.logprobs
            )
        if delta.finish_reason is not None:
            progress.finish_reason = delta.finish_reason
            progress.stop_reason = None if delta.stop_reason is None else str(delta.stop_reason)
            self._end(key)
        self.dirty[key] = progress
        self._unwritten += len(delta.token_ids)
        return len(delta.token_ids)

    def reject(self, progress: Progress, code: str, message: str) -> None:
        """End a sequence as a reject; what it has so far stays with it."""
        progress.code = code
        progress.message = message
        key = (progress.row, progress.sample_index)
        self._end(key)
        self.dirty[key] = progress

    def refuse(self, key: SequenceKey, code: str, message: str) -> list[str]:
        """The engine will not run this sequence: its row ends. Returns ids of the row's other samples to abort."""
        others = [other for other in list(self.open) if other[0] == key[0] and other != key]
        self.reject(self.sequences[key], code, message)
        running = [self.seq_id(other) for other in others if self.sequences[other].in_engine]
        for other in others:
            self.reject(self.sequences[other], code, message)
        return running

    def cancel(self, code: StopCode) -> None:
        """End every open sequence because the job is stopped, with what it has."""
        for progress in list(self.open.values()):
            self.reject(progress, str(code), STOP_MESSAGES[code])
        self.waiting.clear()

    def _end(self, key: SequenceKey) -> None:
        self.sequences[key].in_engine = False
        self.open.pop(key, None)
        self.admitted.pop(key, None)

    def crash_report(self, others_in_flight: bool) -> CrashReport | None:
        """What to write when the engine crashed: this chunk's rows in it, oldest first; None when it had none there."""
        rows = tuple(dict.fromkeys(row for row, _ in self.admitted))
        return CrashReport(rows, alone=not others_in_flight) if rows else None

    # -- durable side ----------------------------------------------------------------------------------------------

    def gains(self) -> list[Entry]:
        """What is not durable yet; `snapshot_written` follows at once."""
        return [self._entry(progress) for progress in self.dirty.values() if progress.dirty]

    def _entry(self, progress: Progress) -> Entry:
        start = self._rules.record_start(progress.written)
        texts = progress.texts if progress.written is None else progress.texts[progress.texts_written :]
        return Entry(
            row=progress.row,
            sample_index=progress.sample_index,
            start=start,
            token_ids=progress.tokens[start:],
            text="".join(texts),
            logprobs=None if progress.logprobs is None else progress.logprobs[start:],
            resumed_count=progress.resumed_count,
            tokens_kept=progress.tokens_kept,
            finish_reason=progress.finish_reason,
            stop_reason=progress.stop_reason,
            code=progress.code,
            message=progress.message,
        )

    def take_unwritten(self) -> int:
        """Tokens generated since the last call: those that the write now being made will make durable."""
        tokens, self._unwritten = self._unwritten, 0
        return tokens

    def snapshot_written(self) -> None:
        """Treat all gains as written: they are in an immutable body whose create is repeated until it is durable."""
        for progress in self.dirty.values():
            progress.written = len(progress.tokens)
            progress.texts_written = len(progress.texts)
            progress.end_written = progress.finished
        self.dirty.clear()
