"""Small JSON objects: canonical bytes that name their schema version and their writer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from shuntserve.errors import Corrupt, InvalidInput

SCHEMA_VERSION = "schema_version"
WRITER = "writer"


def dumps(value: Mapping[str, Any], *, schema_version: int, writer: str) -> bytes:
    """`value` with its schema version and writer as canonical JSON: equal values give equal bytes.

    `writer` is the writing process's UUID, by which an honest create recognises its own object. Raises ValueError for
    NaN, infinity and a value that already has either name: both are errors of the calling code.
    """
    taken = {SCHEMA_VERSION, WRITER} & value.keys()
    if taken:
        raise ValueError(f"reserved names in a JSON object: {', '.join(sorted(taken))}")
    whole = {SCHEMA_VERSION: schema_version, WRITER: writer, **value}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def loads(thing: str, body: bytes, *, schema_version: int) -> dict[str, Any]:
    """The object that `dumps` wrote, its two own names included; `thing` names it in errors.

    This version and the one before are accepted; the caller looks at `schema_version` where they differ. Raises
    InvalidInput for a newer or an older one, Corrupt when the bytes are not such an object.
    """
    try:
        value = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise Corrupt(thing, "not a JSON object", "the object was damaged or written by something else") from error
    if not isinstance(value, dict):
        raise Corrupt(thing, "not a JSON object", "the object was damaged or written by something else")
    found = value.get(SCHEMA_VERSION)
    if not isinstance(found, int) or isinstance(found, bool):
        raise Corrupt(thing, "has no schema version", "the object was damaged or written by something else")
    if not isinstance(value.get(WRITER), str):
        raise Corrupt(thing, "does not name its writer", "the object was damaged or written by something else")
    readable = f"this ShuntServe reads {schema_version - 1} and {schema_version}"
    if found > schema_version:
        raise InvalidInput(thing, f"has the newer schema version {found}; {readable}", "install a newer ShuntServe")
    if found < schema_version - 1:
        raise InvalidInput(thing, f"has the older schema version {found}; {readable}", "install an older ShuntServe")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice")
    return value
