"""A bucket in memory, seen by each worker through a bad network; every create is judged by what the bucket holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

from shuntserve.core.create import Settle
from shuntserve.errors import NotFound, Unavailable
from shuntserve.store.faults import NO_FAULT, Fault, FaultyBucket, Lost
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket, ObjectInfo
from shuntserve.store.verbs import Call, Verb
from tests.model.promises import BELIEF


class Broken(AssertionError):
    """A promise of the ledger was broken."""

    def __init__(self, promise: str, how: str) -> None:
        super().__init__(f"{promise}\n{how}")
        self.promise = promise


class Answer(StrEnum):
    """What becomes of one request."""

    GOOD = "good"
    REQUEST_LOST = "request lost"
    REPLY_LOST = "reply lost"
    REPEATED = "repeated by the client"
    LATE = "late"


class Network:
    """The bucket itself, and what is in the air. `stored` is told of every object that appears by a create."""

    def __init__(self, rule: Settle, stored: Callable[[str, bytes], None]) -> None:
        self.bucket = open_bucket("memory://ledger-machine")
        self.air: list[tuple[str, bytes]] = []
        self.rule = rule
        self._stored = stored
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        for info in list(self.bucket.list("")):
            self.bucket.delete(info.key)

    def find(self, key: str) -> bytes | None:
        """What is really there."""
        try:
            return self.bucket.get(key)
        except NotFound:
            return None

    def create(self, key: str, body: bytes) -> bool:
        """One conditional put, as a store answers it: True when it took effect, False when something is there."""
        if self.find(key) is not None:
            return False
        self.bucket.put(key, body)
        self._stored(key, body)
        return True

    def land(self, position: int) -> None:
        """One late request reaches the bucket."""
        self.create(*self.air.pop(position))


class Line(FaultyBucket):
    """One worker's way to the bucket. Its requests meet the answers in `script`, in order; afterwards all is good."""

    def __init__(self, network: Network) -> None:
        self.script: list[Answer] = []
        self.cut = False
        self.overwrites = False
        self._network = network
        self._wire = _Wire(network)
        super().__init__(self._wire, self._fate, create_tries=2, rule=network.rule)

    def _fate(self, call: Call) -> Fault:
        if self.cut:
            return Fault(Lost.REQUEST)
        answer = self.script.pop(0) if self.script else Answer.GOOD
        self._wire.fate = answer if call.verb is Verb.CREATE else Answer.GOOD
        match answer:
            case Answer.REQUEST_LOST:
                return Fault(Lost.REQUEST)
            case Answer.REPLY_LOST:
                return Fault(Lost.REPLY)
            case Answer.LATE if call.verb is not Verb.CREATE:
                return Fault(Lost.REQUEST)
            case _:
                return NO_FAULT

    def create(self, key: str, body: bytes) -> bool:
        self._wire.overwrites = self.overwrites
        won = super().create(key, body)
        if won != (self._network.find(key) == body):
            raise Broken(BELIEF, f"{key}: a writer was told {'won' if won else 'lost'}")
        if not won and self._network.find(key) is None:
            raise Broken(BELIEF, f"{key}: a writer was told lost, and nothing is there")
        return won


class _Wire(Bucket):
    """Single requests: what the client library sends, repeats and gives up."""

    def __init__(self, network: Network) -> None:
        self.fate = Answer.GOOD
        self.overwrites = False
        self._network = network
        self._bucket = network.bucket

    @property
    def url(self) -> str:
        return self._bucket.url

    def get(self, key: str) -> bytes:
        return self._bucket.get(key)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self._bucket.get_range(key, start, end)

    def head(self, key: str) -> ObjectInfo | None:
        return self._bucket.head(key)

    def put(self, key: str, body: bytes) -> None:
        self._bucket.put(key, body)

    def create(self, key: str, body: bytes) -> bool:
        match self.fate:
            case Answer.LATE:
                self._network.air.append((key, body))
                raise Unavailable(key, "timed out", "")
            case Answer.REPEATED:
                self._network.create(key, body)
        if self.overwrites:
            self._bucket.put(key, body)
            return True
        return self._network.create(key, body)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        return self._bucket.list(prefix, start_after=start_after)

    def list_dirs(self, prefix: str) -> Sequence[str]:
        return self._bucket.list_dirs(prefix)

    def delete(self, key: str) -> None:
        self._bucket.delete(key)
