"""Marked prompts: ordinary to an ordinary engine, and what sets off the faults of `tests.support.faulty_scheduler`.

A marker is a special token's id three times in a row, which prompts made of words do not hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from shuntserve.sim.tiny_model import SPECIAL_TOKENS

ABORT, RAISE, HANG = FAULTS = (1, 2, 3)
"""Ids of special tokens."""
FAULTY_SCHEDULER = "tests.support.faulty_scheduler.FaultyScheduler"

_LENGTH = 3


def marked(prompt_token_ids: Sequence[int], fault: int) -> list[int]:
    """The prompt, with a marker at its end."""
    return [*prompt_token_ids, *[fault] * _LENGTH]


def marked_text(prompt: str, fault: int) -> str:
    """The same for text, in the vocabulary of `sim.tiny_model`."""
    return prompt + SPECIAL_TOKENS[fault] * _LENGTH


def marker_of(prompt_token_ids: Sequence[int] | None) -> int | None:
    """The fault that this prompt is marked with."""
    ids = list(prompt_token_ids or ())
    for fault in FAULTS:
        if any(ids[i : i + _LENGTH] == [fault] * _LENGTH for i in range(len(ids) - _LENGTH + 1)):
            return fault
    return None
