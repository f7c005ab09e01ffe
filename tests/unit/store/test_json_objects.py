"""Small JSON objects: canonical, versioned, signed by their writer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.errors import Corrupt, InvalidInput
from shuntserve.store.json_objects import dumps, loads

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(st.text().filter(lambda name: name not in ("schema_version", "writer")), plain, max_size=5)


@given(objects)
def test_loads_returns_what_dumps_was_given(value: dict[str, Any]) -> None:
    """decode(encode(x)) = x, with version and writer added."""
    body = dumps(value, schema_version=1, writer="w")

    assert loads("k", body, schema_version=1) == {**value, "schema_version": 1, "writer": "w"}


@given(objects)
def test_equal_values_give_equal_bytes(value: dict[str, Any]) -> None:
    """The order in which names were put into a dict leaves no trace."""
    backwards = dict(reversed(value.items()))

    assert dumps(value, schema_version=1, writer="w") == dumps(backwards, schema_version=1, writer="w")


def test_two_writers_never_write_the_same_bytes() -> None:
    """The writer is part of the bytes, as honest create requires."""
    assert dumps({}, schema_version=1, writer="a") != dumps({}, schema_version=1, writer="b")


def test_bytes_are_compact_utf8_in_name_order() -> None:
    """One spelling, fit for comparing and reading."""
    assert dumps({"b": "ü", "a": [1, 2.5]}, schema_version=3, writer="w") == (
        '{"a":[1,2.5],"b":"ü","schema_version":3,"writer":"w"}'.encode()
    )


@pytest.mark.parametrize("name", ["schema_version", "writer"])
def test_reserved_names_are_refused(name: str) -> None:
    """A value cannot pretend to another version or writer."""
    with pytest.raises(ValueError, match=name):
        dumps({name: 1}, schema_version=1, writer="w")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_json_are_refused(number: float) -> None:
    """NaN and infinity exist neither in what we write nor in what we read."""
    with pytest.raises(ValueError, match="JSON"):
        dumps({"x": number}, schema_version=1, writer="w")
    with pytest.raises(Corrupt):
        loads("k", json.dumps({"x": number, "schema_version": 1, "writer": "w"}).encode(), schema_version=1)


def test_this_version_and_the_one_before_are_read() -> None:
    """A reader of version 4 reads 3 and 4."""
    for version in (3, 4):
        body = dumps({}, schema_version=version, writer="w")
        assert loads("k", body, schema_version=4)["schema_version"] == version


def test_a_newer_version_is_refused_by_name() -> None:
    """The error names the object, its version, what is readable and what to do."""
    body = dumps({}, schema_version=5, writer="w")

    with pytest.raises(
        InvalidInput, match=r"jobs/j/spec\.json: has the newer schema version 5; .* reads 3 and 4 — install"
    ):
        loads("jobs/j/spec.json", body, schema_version=4)


def test_a_version_too_old_is_refused_by_name() -> None:
    """Two versions back is not guessed at either."""
    with pytest.raises(InvalidInput, match="older schema version 2"):
        loads("k", dumps({}, schema_version=2, writer="w"), schema_version=4)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b"{}",
        b'{"schema_version":1}',
        b'{"writer":"w"}',
        b'{"schema_version":"1","writer":"w"}',
        b'{"schema_version":true,"writer":"w"}',
        b'{"schema_version":1,"writer":7}',
        b'{"schema_version":1,"writer":"w","a":1,"a":2}',
        b'{"schema_version":1,"writer":"w"} trailing',
        b"[" * 100_000,
    ],
)
def test_garbage_is_corrupt_and_named(body: bytes) -> None:
    """Whatever is not such an object is Corrupt, with the object's name."""
    with pytest.raises(Corrupt, match=r"^thing: "):
        loads("thing", body, schema_version=1)
