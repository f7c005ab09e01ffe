"""Which keys are legal: those that mean the same object in S3, in a local directory and in memory."""

from __future__ import annotations

import re

from shuntserve.errors import InvalidInput

MAX_KEY_BYTES = 900
"""S3 allows 1,024 bytes, the bucket's root prefix included."""
MAX_SEGMENT_BYTES = 240
"""File systems allow 255 bytes a name; a write in progress adds a few."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_STAGED = re.compile(r"[^#]*#[0-9]+")


def check_key(url: str, key: str) -> None:
    """Raise InvalidInput unless `key` names one object, the same in every kind of bucket."""
    if not key:
        raise _bad(url, key, "the key is empty")
    check_prefix(url, key)
    if is_staged(key.rpartition("/")[2]):
        raise _bad(url, key, "a key may not end in # and digits after its only #")


def is_staged(name: str) -> bool:
    """Whether the last part of a key is one that the local directory keeps for itself: it writes `name#1` first and
    then links it to `name`."""
    return _STAGED.fullmatch(name) is not None


def check_prefix(url: str, prefix: str) -> None:
    """Raise InvalidInput unless `prefix` is empty (the whole bucket) or could be the beginning of a key."""
    if not prefix:
        return
    try:
        encoded = prefix.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _bad(url, ascii(prefix), "the key is not valid Unicode") from error
    if len(encoded) > MAX_KEY_BYTES:
        raise _bad(url, prefix, f"the key has more than {MAX_KEY_BYTES} bytes")
    if _CONTROL.search(prefix):
        raise _bad(url, ascii(prefix), "the key has a control character")
    for segment in prefix.split("/"):
        if segment in ("", ".", ".."):
            raise _bad(url, prefix, "the key has an empty, '.' or '..' part, or a slash at an end")
        if len(segment.encode("utf-8")) > MAX_SEGMENT_BYTES:
            raise _bad(url, prefix, f"a part of the key has more than {MAX_SEGMENT_BYTES} bytes")


def _bad(url: str, key: str, cause: str) -> InvalidInput:
    return InvalidInput(f"{url}/{key}", cause, "use another name")
