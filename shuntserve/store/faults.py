"""A bucket that fails on purpose, the same way every time: for simulators and tests.

Faults strike single requests *below* the honest create, so a create over this bucket goes through the same rule as
one over S3: its put can be lost before or after it took effect, and so can the read-back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from shuntserve.core.create import Found, Put, Settle, settle
from shuntserve.errors import NotFound, ShuntServeError, Unavailable
from shuntserve.store.honest import Attempt, create_honestly
from shuntserve.store.port import Bucket, ObjectInfo
from shuntserve.store.verbs import Call, Verb

T = TypeVar("T")


class Lost(Enum):
    """Which half of a request is lost."""

    REQUEST = "request"
    REPLY = "reply"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request: it takes `delay_s` longer, and one half of it may be lost."""

    lost: Lost | None = None
    delay_s: float = 0.0


NO_FAULT = Fault()

Plan = Callable[[Call], Fault]
"""Asked once for every request. It may raise, as a process that dies in the middle would."""


def no_faults(call: Call) -> Fault:
    """The plan under which nothing goes wrong."""
    return NO_FAULT


@dataclass(slots=True)
class RandomFaults:
    """Faults at given rates, drawn from `chance`: the same seed and calls give the same faults.

    `lose_request` and `lose_reply` are probabilities of the two losses; every request takes up to `most_delay_s`.
    """

    chance: random.Random
    lose_request: float = 0.0
    lose_reply: float = 0.0
    most_delay_s: float = 0.0

    def __call__(self, call: Call) -> Fault:
        draw = self.chance.random()
        delay_s = self.chance.random() * self.most_delay_s
        if draw < self.lose_request:
            return Fault(Lost.REQUEST, delay_s)
        if draw < self.lose_request + self.lose_reply:
            return Fault(Lost.REPLY, delay_s)
        return Fault(None, delay_s)


class ScriptedFaults:
    """The given faults, one for each request of the given verbs (default: all), in order; afterwards none."""

    def __init__(self, faults: Sequence[Fault], *, verbs: Sequence[Verb] = tuple(Verb)) -> None:
        self._left = list(faults)
        self._verbs = frozenset(verbs)

    def __call__(self, call: Call) -> Fault:
        return self._left.pop(0) if self._left and call.verb in self._verbs else NO_FAULT


class FaultyBucket:
    """`inner` behind a bad network. Keeps every promise of `port.Bucket`, failing with Unavailable as `plan` says.

    `pause` is told each delay; a simulator moves its clock there.
    """

    def __init__(
        self,
        inner: Bucket,
        plan: Plan,
        *,
        pause: Callable[[float], None] = lambda delay_s: None,
        create_tries: int = 4,
        rule: Settle = settle,
    ) -> None:
        self._inner = inner
        self._plan = plan
        self._pause = pause
        self._create_tries = create_tries
        self._rule = rule

    @property
    def url(self) -> str:
        return self._inner.url

    def get(self, key: str) -> bytes:
        return self._send(Call(Verb.GET, key), lambda: self._inner.get(key))

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self._send(Call(Verb.GET_RANGE, key), lambda: self._inner.get_range(key, start, end))

    def head(self, key: str) -> ObjectInfo | None:
        return self._send(Call(Verb.HEAD, key), lambda: self._inner.head(key))

    def put(self, key: str, body: bytes) -> None:
        self._send(Call(Verb.PUT, key, len(body)), lambda: self._inner.put(key, body))

    def create(self, key: str, body: bytes) -> bool:
        call = Call(Verb.CREATE, key, len(body))

        def attempt() -> Attempt:
            try:
                created = self._send(call, lambda: self._inner.create(key, body))
            except Unavailable as error:
                return Attempt(Put.FAILED, error)
            except ShuntServeError as error:
                return Attempt(Put.REFUSED, error)
            return Attempt(Put.STORED if created else Put.EXISTS)

        def read_back() -> Found:
            try:
                found = self.get(key)
            except NotFound:
                return Found.ABSENT
            except ShuntServeError:
                return Found.UNREADABLE
            return Found.MINE if found == body else Found.ANOTHERS

        return create_honestly(
            attempt,
            read_back,
            lambda error: error if isinstance(error, ShuntServeError) else self._lost(call),
            tries=self._create_tries,
            in_time=lambda: True,
            rule=self._rule,
        )

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        fault = self._begin(Call(Verb.LIST, prefix))
        found = list(self._inner.list(prefix, start_after=start_after))
        if fault.lost is Lost.REPLY:
            return self._cut_short(found[: len(found) // 2], Call(Verb.LIST, prefix))
        return iter(found)

    def list_dirs(self, prefix: str) -> Sequence[str]:
        return self._send(Call(Verb.LIST_DIRS, prefix), lambda: self._inner.list_dirs(prefix))

    def delete(self, key: str) -> None:
        self._send(Call(Verb.DELETE, key), lambda: self._inner.delete(key))

    def _send(self, call: Call, request: Callable[[], T]) -> T:
        fault = self._begin(call)
        reply = request()
        if fault.lost is Lost.REPLY:
            raise self._lost(call)
        return reply

    def _begin(self, call: Call) -> Fault:
        fault = self._plan(call)
        if fault.delay_s > 0:
            self._pause(fault.delay_s)
        if fault.lost is Lost.REQUEST:
            raise self._lost(call)
        return fault

    def _cut_short(self, found: Sequence[ObjectInfo], call: Call) -> Iterator[ObjectInfo]:
        yield from found
        raise self._lost(call)

    def _lost(self, call: Call) -> Unavailable:
        return Unavailable(f"{self.url}/{call.key}", f"{call.verb} was not answered", "try again")
