"""The exception tree; each class says what the caller does next.

    ShuntServeError
    ├── InvalidInput     change the request; repeating it cannot help
    │   └── NotFound     the thing named does not exist
    ├── Unavailable      try elsewhere or later; the outcome of a write is UNKNOWN until it is read back
    ├── Conflict         someone else won; reread and decide anew
    └── Corrupt          stop and report; data does not hold what its writer promised

Every error a user can meet names the thing, the cause and the next step. Foreign errors are translated once, in the
adapter that meets them, by code and never by message text.
"""

from __future__ import annotations


class ShuntServeError(Exception):
    """Base of all errors raised on purpose. `str()` is one line fit for a terminal."""

    def __init__(self, thing: str, cause: str, next_step: str = "") -> None:
        self.thing = thing
        self.cause = cause
        self.next_step = next_step
        super().__init__(f"{thing}: {cause}" + (f" — {next_step}" if next_step else ""))

    def __reduce__(self) -> tuple[type[ShuntServeError], tuple[str, str, str]]:
        return type(self), (self.thing, self.cause, self.next_step)


class InvalidInput(ShuntServeError):
    """The request itself is wrong: change it."""


class NotFound(InvalidInput):
    """The named object, file, job or row does not exist."""


class Unavailable(ShuntServeError):
    """The other side did not answer usefully: later or elsewhere. A write's outcome is unknown until read back."""


class Conflict(ShuntServeError):
    """Another writer was first: reread and decide anew."""


class Corrupt(ShuntServeError):
    """Stored data contradicts its own description: stop and report."""
