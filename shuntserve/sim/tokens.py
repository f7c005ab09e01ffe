"""The stand-in language model: the next token is a hash of what came before, so that any faithful resume is visible.

A sequence continued with even one token missing, doubled, or taken from another stream ends in other tokens than an
undisturbed one; nothing is learnt, and nothing takes time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

from shuntserve.engine.port import Delta, SequenceRequest

VOCABULARY = 50_000
EOS = 0


class StandinModel:
    """State of one sequence. `greedy` ignores the seed, as a real engine does."""

    __slots__ = ("_ends_early", "_length", "_max_tokens", "_state")

    def __init__(self, prompt: Sequence[int], params: Mapping[str, Any], prior: Sequence[int] = ()) -> None:
        seed = params["seed"] if params.get("temperature", 1.0) > 0 else 0
        self._state = crc32(b"".join(token.to_bytes(4, "little") for token in prompt), seed & 0xFFFFFFFF)
        self._max_tokens = int(params["max_tokens"])
        self._ends_early = not params.get("ignore_eos", False)
        self._length = 0
        for token in prior:
            self._take(token)

    def _take(self, token: int) -> None:
        self._state = crc32(token.to_bytes(4, "little"), self._state)
        self._length += 1

    def finish_reason(self, last: int | None) -> str | None:
        """Why the sequence ends after its last token, if it does."""
        if last == EOS and self._ends_early:
            return "stop"
        return "length" if self._length >= self._max_tokens else None

    def next_token(self) -> int:
        """Generate one token."""
        draw = crc32(b"next", self._state)
        token = EOS if self._ends_early and draw % 97 == 0 else 1 + draw % (VOCABULARY - 1)
        self._take(token)
        return token


def text_of(token: int) -> str:
    """The text of one token."""
    return "" if token == EOS else f"{token:x} "


class StandinBatch:
    """Continuous batching over the stand-in model: seats, a queue, one token for every seated sequence a step.

    A sequence whose prompt holds `poison` raises `PoisonError` in its first step, as a row that crashes a real engine
    would."""

    def __init__(self, seats: int, *, poison: int | None = None, stream_interval: int = 1) -> None:
        self._seats = seats
        self._poison = poison
        self._interval = stream_interval
        self._waiting: dict[str, SequenceRequest] = {}
        self._running: dict[str, _Seated] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def submit(self, request: SequenceRequest) -> None:
        self._waiting[request.seq_id] = request

    def abort(self, seq_ids: Iterable[str]) -> None:
        for seq_id in seq_ids:
            self._waiting.pop(seq_id, None)
            self._running.pop(seq_id, None)

    def step(self) -> list[Delta]:
        """One token for every seated sequence; deltas of those with enough news."""
        while self._waiting and len(self._running) < self._seats:
            seq_id = next(iter(self._waiting))
            self._running[seq_id] = _Seated(self._waiting.pop(seq_id))
        deltas: list[Delta] = []
        for seq_id, seated in list(self._running.items()):
            if self._poison is not None and self._poison in seated.request.prompt_token_ids:
                raise PoisonError(seq_id)
            reason = seated.advance()
            if reason is not None or len(seated.unsent) >= self._interval:
                deltas.append(seated.delta(reason))
            if reason is not None:
                del self._running[seq_id]
        return deltas


class PoisonError(Exception):
    """A poison row reached a seat."""


class _Seated:
    def __init__(self, request: SequenceRequest) -> None:
        self.request = request
        prior = request.prior_token_ids
        self._model = StandinModel(request.prompt_token_ids, request.params, prior)
        self._ended = self._model.finish_reason(prior[-1] if prior else None)
        self._text = "".join(text_of(token) for token in prior)
        self.unsent: list[int] = []

    def advance(self) -> str | None:
        """Generate a token unless the prior ones had already ended the sequence; the finish reason, if it ended."""
        if self._ended is None:
            token = self._model.next_token()
            self.unsent.append(token)
            self._text += text_of(token)
            self._ended = self._model.finish_reason(token)
        return self._ended

    def delta(self, reason: str | None) -> Delta:
        delta = Delta(self.request.seq_id, self.unsent, self._text, finish_reason=reason)
        self.unsent, self._text = [], ""
        return delta
