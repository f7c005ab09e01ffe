"""The engine port: token ids in, token deltas out, one engine at a time.

An engine runs in processes of its own. The port is synchronous and never blocks for long: `poll` waits at most the
time it is given. Nothing here imports vLLM; `shuntserve.engine.process` implements the port over a child process that
hosts vLLM or the deterministic stand-in engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One sequence to generate or to continue.

    `params` are resolved sampling parameters in vLLM's names (JSON values, always with `seed`, never `n`).
    `prior_token_ids` were generated earlier; the engine continues after them exactly as if it had generated them
    itself, so `params` are the original ones (max_tokens is not reduced). A smaller `priority` is more urgent; it
    counts in engines whose scheduling policy is "priority" (`engine.seats` has the rules).
    """

    seq_id: str
    prompt_token_ids: Sequence[int]
    params: Mapping[str, Any]
    prior_token_ids: Sequence[int] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What one sequence gained since its last delta.

    The texts of all deltas since `submit` concatenate to the whole output text: for a continued sequence the first
    delta begins with the text of the prior tokens. `logprobs[i]` belongs to `token_ids[i]`: a list of `[token_id,
    logprob, rank, decoded_token]` entries, the sampled token first.
    """

    seq_id: str
    token_ids: Sequence[int]
    text: str = ""
    logprobs: Sequence[Sequence[Sequence[Any]]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine will not run this sequence (bad parameter, too long): the row is at fault, the engine lives."""

    seq_id: str
    code: str
    message: str


class LossKind(StrEnum):
    """Why an engine is gone. Only CRASHED and HUNG count against the rows it was running.

    INVALID comes only before `EngineReady`: these options can never work (no such model, unsupported engine version),
    so a replacement would end the same way and `detail` is for the user.
    """

    CRASHED = "crashed"
    HUNG = "hung"
    KILLED = "killed"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine's processes are gone (all of them, when this is reported); every sequence in it is off."""

    kind: LossKind
    detail: str


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine accepts sequences."""

    max_model_len: int
    max_num_seqs: int
    eos_token_ids: tuple[int, ...]
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    """What results depend on: engine version, runner, dtype, model and tokenizer hashes, topology, device."""


EngineEvent = Delta | Refused | EngineLost | EngineReady


class Engine(Protocol):
    """One engine life: start → ready → (submit, poll, abort)* → stopped or lost. A new object replaces a lost
    one."""

    def start(self) -> None:
        """Begin starting; returns at once. `EngineReady` or `EngineLost` comes through `poll`."""
        ...

    def submit(self, requests: Sequence[SequenceRequest]) -> None:
        """Queue sequences; never blocks on generation. Silently ignored after loss (the loss event tells)."""
        ...

    def abort(self, seq_ids: Sequence[str]) -> None:
        """Stop these sequences; deltas already on their way may still come."""
        ...

    def poll(self, timeout_s: float) -> list[EngineEvent]:
        """Events since the last call, waiting at most `timeout_s` for the first one."""
        ...

    def stop(self) -> None:
        """End the engine and all its processes; returns when none is left. Idempotent."""
        ...
