"""Structured outputs: a JSON schema, regex, choice or grammar that the answer must satisfy, in one canonical form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shuntserve.core.near_miss import did_you_mean

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
MAX_SCHEMA_NESTING = 64
"""vLLM refuses deeper schemas: its cost of building a grammar grows steeply with nesting."""


def canonical_structured_outputs(value: Any) -> dict[str, Any]:
    """vLLM's `structured_outputs`, checked: exactly one of `KINDS`, and options. Raises ValueError, naming what is
    wrong."""
    if isinstance(value, str):
        value = _parse_json(value)
    if not isinstance(value, Mapping):
        raise ValueError("must be an object such as {'json': {…}} or {'regex': '…'}")
    given = {name: item for name, item in value.items() if item is not None}
    for name in given:
        if name not in KINDS and name not in OPTIONS:
            raise ValueError(f"has the unknown key {name!r}; {did_you_mean(name, (*KINDS, *OPTIONS))}")
    kinds = [name for name in KINDS if name in given]
    if len(kinds) != 1:
        raise ValueError(f"must have exactly one of {', '.join(KINDS)}; it has {', '.join(kinds) or 'none'}")
    kind = kinds[0]
    result: dict[str, Any] = {kind: _CHECKS[kind](given[kind])}
    for name in OPTIONS:
        if name in given:
            expected: type = str if name == "whitespace_pattern" else bool
            if not isinstance(given[name], expected):
                raise ValueError(f"{name} must be {'a string' if expected is str else 'true or false'}")
            result[name] = given[name]
    return result


def from_response_format(value: Any) -> dict[str, Any] | None:
    """OpenAI's `response_format` as structured outputs; None for `text`. Raises ValueError."""
    if isinstance(value, str):
        value = _parse_json(value)
    if not isinstance(value, Mapping):
        raise ValueError("must be an object with a type")
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            inner = value.get("json_schema")
            if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
                raise ValueError("of type json_schema needs json_schema.schema, an object")
            return canonical_structured_outputs({"json": inner["schema"]})
        case "structural_tag":
            return canonical_structured_outputs({"structural_tag": json.dumps(value, sort_keys=True)})
        case other:
            raise ValueError(
                f"has the type {other!r}; {did_you_mean(str(other), ('text', 'json_object', 'json_schema'))}"
            )


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError("is not valid JSON") from error


def _check_schema(value: Any) -> Any:
    schema = _parse_json(value) if isinstance(value, str) else value
    if not isinstance(schema, Mapping):
        raise ValueError("json must be a JSON schema, an object")
    if _nesting(schema) > MAX_SCHEMA_NESTING:
        raise ValueError(f"json nests deeper than {MAX_SCHEMA_NESTING} levels")
    return dict(schema)


def _check_regex(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("regex must be a non-empty string")
    return value  # dialects differ between grammar back ends, so only the engine can say whether it compiles


def _check_choice(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) and item for item in value):
        raise ValueError("choice must be a list of non-empty strings")
    return list(value)


def _check_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("grammar and structural_tag must be non-empty strings")
    return value


def _check_json_object(value: Any) -> bool:
    if value is not True:
        raise ValueError("json_object can only be true")
    return True


_CHECKS = {
    "json": _check_schema,
    "regex": _check_regex,
    "choice": _check_choice,
    "grammar": _check_text,
    "json_object": _check_json_object,
    "structural_tag": _check_text,
}


def _nesting(value: Any) -> int:
    depth = 0
    level = [value]
    while level and depth <= MAX_SCHEMA_NESTING:
        depth += 1
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, Mapping) else node)
            if isinstance(child, Mapping | list)
        ]
    return depth
