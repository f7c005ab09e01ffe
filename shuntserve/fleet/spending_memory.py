"""The spending lease across the lives of one machine's agent: one that is started again gets no new lease.

A small file on the machine. It counts on a clock that goes on while the machine runs, so a file of an earlier boot, or
of another store's job, means nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shuntserve.core.spending import SpendingWatch

FIRST_LEASE_S = 300.0
"""As long as nobody has been able to read what the job says."""


@dataclass(frozen=True, slots=True)
class SpendingMemory:
    """Where it is kept, and what it is of."""

    path: Path
    store_url: str
    place: str
    """Where and since when the clock runs (`job.machine.place`)."""

    def recall(self, now_s: float) -> SpendingWatch:
        """As the life before left it; begun now, and kept, when there was none."""
        value = self._read()
        try:
            if (value["store"], value["place"]) == (self.store_url, self.place) and value["since_s"] <= now_s:
                return SpendingWatch(value["lease_s"], value["renewal"], value["since_s"], value["looked_s"])
        except (KeyError, TypeError):
            pass  # none, or not whole
        begun = SpendingWatch.begin(FIRST_LEASE_S, now_s)
        self.keep(begun)
        return begun

    def keep(self, watch: SpendingWatch) -> None:
        """Best effort: on a full disk the next life begins a lease of its own."""
        value = {
            "store": self.store_url,
            "place": self.place,
            "lease_s": watch.lease_s,
            "renewal": watch.renewal,
            "since_s": watch.since_s,
            "looked_s": watch.looked_s,
        }
        fresh = self.path.with_suffix(".new")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(value), encoding="utf-8")
            fresh.replace(self.path)

    def _read(self) -> Mapping[str, Any]:
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}
