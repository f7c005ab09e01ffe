"""Where the nodes of one pipeline generation meet: what its leader publishes and the others read.

A small document. The leader's agent puts it where the other agents look; each starts its node process with it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from shuntserve.errors import Corrupt

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """`address` is private and reachable from all nodes of the pipeline; `token` is shown by those who join."""

    generation: str
    address: str
    port: int
    token: str

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Rendezvous:
        """Raises Corrupt for anything that `to_json` did not write, naming what is wrong."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise Corrupt("rendezvous", f"is no JSON: {error}", "publish it again") from error
        if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
            raise Corrupt("rendezvous", f"is not of schema version {SCHEMA_VERSION}", "use the same release everywhere")
        types = {"generation": str, "address": str, "port": int, "token": str}
        for name in (item.name for item in fields(cls)):
            if type(raw.get(name)) is not types[name]:
                raise Corrupt("rendezvous", f"{name} is {raw.get(name)!r}", "publish it again")
        return cls(raw["generation"], raw["address"], raw["port"], raw["token"])

    def __repr__(self) -> str:
        """Without the token: this may end up in a log."""
        return f"Rendezvous({self.generation} at {self.address}:{self.port})"
