"""Reads request lengths from a file: CSV or Parquet with a column of prompt lengths and one of output lengths."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput, NotFound

COLUMNS = (
    ("prompt_tokens", "completion_tokens"),
    ("input_tokens", "output_tokens"),
    ("ContextTokens", "GeneratedTokens"),
)
"""Accepted pairs of names; the first is what a ShuntServe job writes to its own output."""


def read_workload(text: str) -> Workload:
    """`763:232` (every request alike), or the path of a CSV or Parquet file. Raises `InvalidInput` or `NotFound`."""
    prompt, colon, output = text.partition(":")
    if colon and "/" not in text:
        try:
            return Workload.fixed(float(prompt), float(output))
        except ValueError:
            pass
    path = Path(text)
    if not path.is_file():
        raise NotFound(f"workload {text!r}", "neither PROMPT:OUTPUT lengths nor a file", "write 763:232 or name a file")
    if path.suffix == ".parquet":
        return _workload(path, _parquet(path))
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            return _workload(path, csv.DictReader(handle))
    except UnicodeDecodeError as error:
        raise InvalidInput(f"workload {path}", "it is neither Parquet nor text", "give CSV or Parquet") from error


def _parquet(path: Path) -> Iterable[Mapping[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        wanted = [name for pair in COLUMNS for name in pair if name in names]
        return pq.read_table(path, columns=wanted).to_pylist()
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"workload {path}", f"it is no Parquet file: {error}", "give CSV or Parquet") from error


def _workload(path: Path, rows: Iterable[Mapping[str, object]]) -> Workload:
    pairs: list[tuple[int, int]] = []
    names: tuple[str, str] | None = None
    for number, row in enumerate(rows, start=1):
        names = names or next((pair for pair in COLUMNS if all(name in row for name in pair)), None)
        if names is None:
            expected = " or ".join(" and ".join(pair) for pair in COLUMNS)
            raise InvalidInput(f"workload {path}", f"its columns are {', '.join(row)}", f"name them {expected}")
        try:
            prompt, output = (int(str(row[name])) for name in names)
        except ValueError as error:
            raise InvalidInput(f"workload {path}, row {number}", str(error), "give whole numbers of tokens") from error
        if prompt < 1 or output < 0:
            raise InvalidInput(f"workload {path}, row {number}", f"{prompt} and {output} tokens", "give lengths ≥ 1")
        pairs.append((prompt, max(output, 1)))
    if not pairs:
        raise InvalidInput(f"workload {path}", "it has no rows", "give at least one request")
    return Workload.of(pairs, path.name)
