"""`Classify: {text}`: a prompt made from named columns of a row."""

from __future__ import annotations

import string
from dataclasses import dataclass

from shuntserve.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Literal pieces and column names in turn: `literals[0] columns[0] literals[1] … columns[-1] literals[-1]`."""

    literals: tuple[str, ...]
    columns: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> PromptTemplate:
        """Read `{column}` fields; `{{` and `}}` stand for braces. Raises InvalidInput.

        The whole text between the braces is the column's name, so names may hold spaces and dots. Conversions and
        formats (`{x!r}`, `{x:>8}`) are refused: how a value looks must not depend on the language that filled it in.
        """
        literals = [""]
        columns: list[str] = []
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise InvalidInput(
                "prompt_template", f"cannot be read: {error}", "write {column} for a column and {{ or }} for a brace"
            ) from error
        for literal, field, spec, conversion in pieces:
            literals[-1] += literal
            if field is None:
                continue
            if not field or field.isdigit():
                raise InvalidInput("prompt_template", "a field has no column name", "write {column}, e.g. {text}")
            if spec or conversion:
                raise InvalidInput(
                    "prompt_template",
                    f"field {field!r} has a format",
                    "write only the column between the braces",
                )
            columns.append(field)
            literals.append("")
        if not columns:
            raise InvalidInput(
                "prompt_template",
                "names no column, so that every row would have the same prompt",
                "name at least one column, e.g. 'Classify: {text}'",
            )
        return PromptTemplate(tuple(literals), tuple(columns))
