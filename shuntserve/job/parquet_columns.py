"""Which input columns a job reads, of which types, and their values as text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.prompt_template import PromptTemplate
from shuntserve.core.specs import COLUMNS
from shuntserve.errors import InvalidInput

PROMPT_COLUMNS = ("prompt", "messages", "prompt_token_ids")


def find_columns(schema: pa.Schema, mapping: Mapping[str, str], template: str | None) -> dict[str, str]:
    """Our column name → the input's, for those that exist. Raises InvalidInput, naming near misses and wrong types."""
    for ours, theirs in mapping.items():
        if theirs not in schema.names:
            raise InvalidInput(
                f"input column {theirs!r} (columns: {ours})", "is not in the input", did_you_mean(theirs, schema.names)
            )
    taken = set(mapping.values())
    columns = {ours: ours for ours in COLUMNS if ours in schema.names and ours not in mapping and ours not in taken}
    columns.update(mapping)
    if template is not None:
        for column in template_columns(template):
            if column not in schema.names:
                raise InvalidInput(
                    f"prompt_template column {column!r}", "is not in the input", did_you_mean(column, schema.names)
                )
            if not _is_scalar(schema.field(column).type):
                raise InvalidInput(
                    f"prompt_template column {column!r}",
                    f"is {schema.field(column).type}",
                    "use text or number columns",
                )
        for ours in PROMPT_COLUMNS:
            columns.pop(ours, None)
    elif not any(ours in columns for ours in PROMPT_COLUMNS):
        raise InvalidInput(
            "input",
            f"has no prompt column (prompt, messages or prompt_token_ids); its columns are {', '.join(schema.names)}",
            "name yours with columns: {prompt: …} (--column prompt=…) or use prompt_template",
        )
    for ours, theirs in columns.items():
        wanted = _wrong_type(ours, schema.field(theirs).type)
        if wanted is not None:
            raise InvalidInput(
                f"input column {theirs!r}", f"is {schema.field(theirs).type}, not {wanted}", f"convert it to {wanted}"
            )
    return columns


def template_columns(template: str | None) -> tuple[str, ...]:
    """The input columns a prompt template names."""
    return PromptTemplate.parse(template).columns if template is not None else ()


def as_mask(array: pa.Array) -> npt.NDArray[np.bool_]:
    """A boolean array without nulls as numpy."""
    mask: npt.NDArray[np.bool_] = array.to_numpy(zero_copy_only=False).astype(np.bool_)
    return mask


def to_text(array: pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """The values as strings, and which of them are not valid UTF-8 (null in the result).

    Parquet writers need not check what they call text, so neither strings nor bytes are trusted here.
    """
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if not _is_bytes(array.type):
        array = array.cast(pa.string())
    as_bytes = array.cast(pa.binary())
    try:
        return as_bytes.cast(pa.string()), np.zeros(len(array), dtype=np.bool_)
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        broken = np.zeros(len(array), dtype=np.bool_)
        for index, value in enumerate(as_bytes.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                broken[index] = True
        return pa.array(texts, pa.string()), broken


def _is_bytes(type_: pa.DataType) -> bool:
    return any(
        check(type_)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
        )
    )


def _is_text(type_: pa.DataType) -> bool:
    return _is_bytes(type_.value_type if pa.types.is_dictionary(type_) else type_)


def _is_scalar(type_: pa.DataType) -> bool:
    return not (pa.types.is_nested(type_) or pa.types.is_null(type_))


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _wrong_type(ours: str, type_: pa.DataType) -> str | None:
    """What a column of ours should be when it is something else; a column of nulls alone may be anything."""
    if pa.types.is_null(type_):
        return None
    match ours:
        case "request_id":
            return None if _is_text(type_) or pa.types.is_integer(type_) else "text or integers"
        case "prompt":
            return None if _is_text(type_) else "text"
        case "messages":
            return None if _is_text(type_) or _is_list(type_) else "a list of {role, content} or JSON text"
        case "prompt_token_ids":
            fits = _is_list(type_) and pa.types.is_integer(type_.value_type)
            return None if fits else "a list of integers"
        case "max_tokens":
            return None if pa.types.is_integer(type_) or pa.types.is_floating(type_) else "integers"
        case _:
            fits = _is_text(type_) or pa.types.is_struct(type_) or pa.types.is_map(type_)
            return None if fits else "JSON text or a struct"
