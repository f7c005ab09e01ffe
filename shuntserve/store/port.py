"""The bucket port: the eight verbs every durable fact goes through.

Promises every implementation keeps (`tests/conformance` runs one suite over all of them):

* keys are `/`-separated UTF-8 paths without a leading slash, relative to the bucket's root prefix;
* a reader sees either no object or a whole object, never part of one;
* `get`, `head` and `list` see every write that returned before they began (S3 has been strongly consistent since 2020);
* `create` is honest: it answers True if and only if the stored object is the caller's, whatever was lost on the way;
* errors are `NotFound`, `InvalidInput`, `Unavailable` (outcome of a write unknown; repeat it with the same bytes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of one object."""

    key: str
    size_bytes: int
    etag: str | None = None
    modified_unix_s: float | None = None
    """When it was written, by the store's own clock: comparable with other objects' of the same bucket alone."""


class Bucket(Protocol):
    """A place for objects. Methods block and are safe to call from several threads."""

    @property
    def url(self) -> str:
        """Where this bucket is, as the user would write it (`s3://…`, `file:///…`, `memory://…`)."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""
        ...

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object. Raises NotFound, InvalidInput when out of range."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Size and etag, or None when absent."""
        ...

    def put(self, key: str, body: bytes) -> None:
        """Write or overwrite. For objects with one writer only."""
        ...

    def create(self, key: str, body: bytes) -> bool:
        """Put if absent, honestly: True when the stored object is ours, False when it is another's.

        `body` must contain the writer's UUID, so that equal bytes mean the same writer: after any error the key is read
        back, and the bytes decide. Raises Unavailable when even that could not be found out; repeating the call with
        the same bytes is always safe.
        """
        ...

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix` (at a `/` boundary), in ascending key order, after `start_after`."""
        ...

    def list_dirs(self, prefix: str) -> Sequence[str]:
        """Names of the 'directories' directly under `prefix` (without slashes), ascending."""
        ...

    def delete(self, key: str) -> None:
        """Remove; absent is fine. Never used on objects of a live job."""
        ...
