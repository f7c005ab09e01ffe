"""The bucket's verbs as values, for whoever speaks about a call rather than making it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verb(StrEnum):
    """One name for each method of `port.Bucket`; the value is the method's name."""

    GET = "get"
    GET_RANGE = "get_range"
    HEAD = "head"
    PUT = "put"
    CREATE = "create"
    LIST = "list"
    LIST_DIRS = "list_dirs"
    DELETE = "delete"

    @property
    def lists(self) -> bool:
        """Whether the call names a prefix rather than one object."""
        return self in (Verb.LIST, Verb.LIST_DIRS)

    @property
    def writes(self) -> bool:
        """Whether the call stores bytes."""
        return self in (Verb.PUT, Verb.CREATE)


@dataclass(frozen=True, slots=True)
class Call:
    """One call that went wrong: what was asked, of which key (or prefix), carrying how much."""

    verb: Verb
    key: str
    size_bytes: int = 0
