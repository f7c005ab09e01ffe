"""What one ingest attempt produced: the chunks of a job, in pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """One chunk: where it lies and how much work it is."""

    chunk: str
    key: str
    sha256: str
    rows: int
    prompt_tokens: int

    def to_json(self) -> dict[str, Any]:
        return {
            "chunk": self.chunk,
            "key": self.key,
            "sha256": self.sha256,
            "rows": self.rows,
            "prompt_tokens": self.prompt_tokens,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ChunkRef:
        return ChunkRef(
            chunk=value["chunk"],
            key=value["key"],
            sha256=value["sha256"],
            rows=value["rows"],
            prompt_tokens=value["prompt_tokens"],
        )


@dataclass(frozen=True, slots=True)
class PageRef:
    """One manifest page: up to `keys.CHUNKS_PER_PAGE` chunks."""

    page: str
    key: str
    sha256: str
    chunks: int
    rows: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The one attempt that counts. `reject_keys` hold the rows ingest refused."""

    attempt: str
    pages: tuple[PageRef, ...]
    reject_keys: tuple[str, ...]
    rows_in: int
    rows_valid: int
    rows_rejected: int
    prompt_tokens: int
    source_files: tuple[str, ...]

    @property
    def chunks(self) -> int:
        return sum(page.chunks for page in self.pages)
