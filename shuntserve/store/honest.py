"""Carrying out an honest create: put, read back, put again, until `core.create.settle` is sure or the bound is met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shuntserve.core.create import Found, Put, Settle, Verdict, settle
from shuntserve.errors import ShuntServeError


@dataclass(frozen=True, slots=True)
class Attempt:
    """One conditional put and, unless it succeeded, the error it ended with."""

    put: Put
    error: Exception | None = None


def create_honestly(
    attempt: Callable[[], Attempt],
    read_back: Callable[[], Found],
    explain: Callable[[Exception | None], ShuntServeError],
    *,
    tries: int,
    in_time: Callable[[], bool],
    rule: Settle = settle,
) -> bool:
    """True when the stored object is ours, False when it is another's; raises `explain(error)` when neither is known.

    At most `tries` puts are made, and none is begun once `in_time()` is False. A success costs one put and no read.
    """
    for tries_left in reversed(range(tries)):
        outcome = attempt()
        verdict = rule(outcome.put, None, tries_left=tries_left)
        if verdict is Verdict.READ_BACK:
            verdict = rule(outcome.put, read_back(), tries_left=tries_left if in_time() else 0)
        match verdict:
            case Verdict.WON:
                return True
            case Verdict.LOST:
                return False
            case Verdict.REFUSED | Verdict.UNKNOWN:
                break
    raise explain(outcome.error) from outcome.error
