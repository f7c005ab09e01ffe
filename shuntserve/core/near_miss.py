"""Suggestions for a name that is not known: the one the user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


def near_miss(name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str | None:
    """The known name closest to `name`, or None when nothing is close.

    `aliases` maps names other programs use for the same thing to ours; it is asked first. Case, dashes and spaces are
    ignored.
    """
    candidates = sorted(known)
    folded = _fold(name)
    for alias, target in (aliases or {}).items():
        if folded == _fold(alias):
            return target
    by_fold = {_fold(candidate): candidate for candidate in candidates}
    if folded in by_fold:
        return by_fold[folded]
    close = difflib.get_close_matches(folded, list(by_fold), n=1, cutoff=0.7)
    return by_fold[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str:
    """A sentence naming the near miss, or else all known names."""
    candidates = sorted(known)
    guess = near_miss(name, candidates, aliases)
    if guess is not None:
        return f"did you mean {guess!r}?"
    return "known names: " + ", ".join(candidates) if candidates else "nothing is accepted here"


def _fold(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")
