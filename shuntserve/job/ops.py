"""Bucket operations as data, so that multi-step procedures are generators without I/O.

A procedure yields an operation and is sent its value, or has `NotFound`, `Unavailable` … thrown into it. The worker
process performs operations on threads; the simulator performs the same ones in virtual time, with faults between any
two of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from shuntserve.store.port import Bucket, ObjectInfo

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Get:
    """-> bytes; NotFound when absent."""

    key: str


@dataclass(frozen=True, slots=True)
class Head:
    """-> ObjectInfo | None."""

    key: str


@dataclass(frozen=True, slots=True)
class Put:
    """-> None; only for objects with one writer."""

    key: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Create:
    """-> bool: True when the stored object is ours."""

    key: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ListKeys:
    """-> list[ObjectInfo], ascending."""

    prefix: str
    start_after: str | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """-> None, `seconds` later."""

    seconds: float


Op = Get | Head | Put | Create | ListKeys | Pause
Procedure = Generator[Op, Any, T]
ProcedureFactory = Callable[[], Procedure[T]]


def perform(bucket: Bucket, op: Op) -> bytes | bool | ObjectInfo | list[ObjectInfo] | None:
    """Carry out one operation; raises what the bucket raises."""
    match op:
        case Get(key):
            return bucket.get(key)
        case Head(key):
            return bucket.head(key)
        case Put(key, body):
            bucket.put(key, body)
            return None
        case Create(key, body):
            return bucket.create(key, body)
        case ListKeys(prefix, start_after):
            return list(bucket.list(prefix, start_after=start_after))
        case Pause(seconds):
            time.sleep(seconds)
            return None


def run(bucket: Bucket, procedure: Procedure[T]) -> T:
    """Run a procedure to its end on this thread."""
    try:
        op = next(procedure)
        while True:
            try:
                value = perform(bucket, op)
            except Exception as error:  # whatever the bucket raises belongs to the procedure
                op = procedure.throw(error)
            else:
                op = procedure.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result
