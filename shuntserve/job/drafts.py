"""All rows of a job's input as drafts, in order: what kind of input it is ends here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import numpy as np
import numpy.typing as npt

from shuntserve.core.resolved import InputFile, InputKind, ResolvedJob
from shuntserve.job.carried import decode_fields
from shuntserve.job.duplicates import DuplicateFinder
from shuntserve.job.openai_rows import OpenAiRows, read_custom_id
from shuntserve.job.parquet_columns import to_text
from shuntserve.job.parquet_rows import ParquetRows
from shuntserve.job.reading import read_lines, read_parquet
from shuntserve.job.rows import Draft, RowContext

OnRows = Callable[[int, int], None]


def read_drafts(
    job: ResolvedJob, context: RowContext, scratch_dir: str | None, on_ids: OnRows
) -> Generator[Draft, None, None]:
    """Every row of the input in one draft or its rejects. `on_ids(done, total)` reports the first pass, over the ids.

    Ids are compared before anything else, so of equal ids the first row has it even when that row is refused for
    another reason. Ids that are made from file and row need no comparison.
    """
    places = _first_places(job)
    total = sum(file.rows for file in job.inputs)
    if job.input_kind is InputKind.PARQUET and "request_id" not in job.columns:
        yield from _drafts(job, context, None, places)
        return
    with DuplicateFinder(total, scratch_dir) as finder:
        for file in job.inputs:
            for ids, rows in _ids(job, file):
                finder.add(ids, rows + places[file.name])
                on_ids(places[file.name] + int(rows[-1]) + 1, total)
        duplicates = finder.finish()
        yield from _drafts(job, context, finder if duplicates else None, places)


def _drafts(
    job: ResolvedJob, context: RowContext, finder: DuplicateFinder | None, places: dict[str, int]
) -> Iterator[Draft]:
    def repeated(file: InputFile, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        return None if finder is None else finder.mask(rows + places[file.name])

    if job.input_kind is InputKind.OPENAI_JSONL:
        lines = OpenAiRows(context)
        for file in job.inputs:
            for batch in read_lines(file):
                numbers = np.array([number for number, _ in batch.lines], dtype=np.int64)
                yield lines.draft(batch.lines, file.name, repeated(file, numbers))
        return
    rows = ParquetRows.of(job, context)
    fields = rows.fields
    for file in job.inputs:
        for part in read_parquet(file, fields):
            numbers = np.arange(part.first_row, part.first_row + part.rows.num_rows, dtype=np.int64)
            yield rows.draft(part.rows, file.name, part.first_row, repeated(file, numbers))


def _ids(job: ResolvedJob, file: InputFile) -> Iterator[tuple[list[str | None], npt.NDArray[np.int64]]]:
    if job.input_kind is InputKind.OPENAI_JSONL:
        for lines in read_lines(file):
            numbers = np.array([number for number, _ in lines.lines], dtype=np.int64)
            yield [read_custom_id(line) for _, line in lines.lines], numbers
        return
    column = next(field for field in decode_fields(job.prompt_schema) if field.name == job.columns["request_id"])
    for part in read_parquet(file, [column]):
        ids, _ = to_text(part.rows.column(0))
        numbers = np.arange(part.first_row, part.first_row + part.rows.num_rows, dtype=np.int64)
        yield [value or None for value in ids.to_pylist()], numbers


def _first_places(job: ResolvedJob) -> dict[str, int]:
    """Where each file's rows begin when all rows of the job are numbered through."""
    places: dict[str, int] = {}
    place = 0
    for file in job.inputs:
        places[file.name] = place
        place += file.rows
    return places
