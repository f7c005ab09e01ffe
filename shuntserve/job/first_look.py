"""A first look at the input: its kind, row counts, content hashes and columns, before any row is read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from shuntserve.core.openai_request import CHAT_URL
from shuntserve.core.resolved import InputFile, InputKind
from shuntserve.errors import InvalidInput
from shuntserve.job.sources import SourceFile, names_of, open_source

_BLOCK_BYTES = 8 << 20
_HASHERS = 8
_HEAD_BYTES = 1 << 20
_LINES_TO_RECOGNISE = 20
PARQUET_MAGIC = b"PAR1"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

OnBytes = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class InputSummary:
    """What the first look found. `schema` unites the columns of all Parquet files; None for JSONL."""

    kind: InputKind
    files: tuple[InputFile, ...]
    schema: pa.Schema | None

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def inspect_input(sources: Sequence[SourceFile], on_bytes: OnBytes | None = None) -> InputSummary:
    """Read every file once, for its hash. `on_bytes(done, total)` tells how far it is. Raises InvalidInput, NotFound.

    Hashes are of the content, not ETags, because an ETag changes with the way a file was uploaded.
    """
    for source in sources:
        if source.size_bytes == 0:
            raise InvalidInput(source.location, "is empty", "write it again or leave it out")
    kinds = {source.location: _kind_of(source) for source in sources}
    if len(set(kinds.values())) > 1:
        odd = next(location for location, kind in kinds.items() if kind is InputKind.OPENAI_JSONL)
        raise InvalidInput(odd, "is JSONL while other inputs are Parquet", "make two jobs, one for each kind")
    kind = next(iter(kinds.values()))
    names = names_of([source.location for source in sources])
    count = _Progress(sum(source.size_bytes for source in sources), on_bytes)
    with ThreadPoolExecutor(_HASHERS, thread_name_prefix="hash") as pool:
        hashes = list(pool.map(partial(_hash, count=count), sources))
    schemas: dict[str, pa.Schema] = {}
    files: list[InputFile] = []
    for source, name, (sha256, lines) in zip(sources, names, hashes, strict=True):
        rows = lines
        if kind is InputKind.PARQUET:
            rows, schemas[name] = _parquet_rows(source)
        files.append(InputFile(name, source.location, source.size_bytes, rows, sha256, source.version))
    if sum(file.rows for file in files) == 0:
        raise InvalidInput(
            sources[0].location, "has no rows", "there is nothing to do; check how the input was written"
        )
    return InputSummary(kind, tuple(files), _united(schemas) if schemas else None)


def hive_columns(name: str) -> dict[str, str]:
    """Columns a file's own path states: `day=2030-01-31/part-0.parquet` has the column `day`."""
    parts = (part.partition("=") for part in name.split("/")[:-1])
    return {key: unquote(value) for key, equals, value in parts if equals and key}


class _Progress:
    def __init__(self, total: int, on_bytes: OnBytes | None) -> None:
        self._total, self._on_bytes, self._done, self._lock = total, on_bytes, 0, Lock()

    def add(self, count: int) -> None:
        if self._on_bytes is None:
            return
        with self._lock:
            self._done += count
            self._on_bytes(self._done, self._total)


def _kind_of(source: SourceFile) -> InputKind:
    head = _head(source)
    if head.startswith(PARQUET_MAGIC):
        return InputKind.PARQUET
    if source.location.endswith((".parquet", ".pq")):
        raise InvalidInput(source.location, "is not a Parquet file", "check that it was written completely")
    if any(_is_request(line) for line in _first_lines(head)):
        return InputKind.OPENAI_JSONL
    if head.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] == b"{":
        raise InvalidInput(
            source.location,
            "has JSON lines, but none of the first is an OpenAI batch request",
            'write {"custom_id": …, "url": "/v1/chat/completions", "body": {…}} a line, or convert it to Parquet',
        )
    raise InvalidInput(
        source.location,
        "is neither Parquet nor OpenAI batch JSONL",
        "convert it to Parquet, e.g. pandas.read_csv(…).to_parquet(…)",
    )


def asks_for_chat(summary: InputSummary) -> bool:
    """Whether one of the first lines of JSONL input is a chat request."""
    heads = (_head(SourceFile(file.location, file.size_bytes, file.version)) for file in summary.files)
    return any(CHAT_URL.encode() in line for head in heads for line in _first_lines(head))


def _head(source: SourceFile) -> bytes:
    with open_source(source) as file:
        return file.read(_HEAD_BYTES)


def _first_lines(head: bytes) -> list[bytes]:
    return head.removeprefix(_BYTE_ORDER_MARK).split(b"\n")[:_LINES_TO_RECOGNISE]


def _is_request(line: bytes) -> bool:
    """Whether a line, which may be cut off at its end, is meant as a request."""
    try:
        value = from_json(line)
    except ValueError:
        return line.lstrip().startswith(b"{") and b'"custom_id"' in line
    return isinstance(value, dict) and ("body" in value or "custom_id" in value)


def content_hash(source: SourceFile) -> str:
    """SHA-256 of the file's content."""
    return _hash(source, _Progress(0, None))[0]


def _hash(source: SourceFile, count: _Progress) -> tuple[str, int]:
    """SHA-256 of the content, and the number of its lines."""
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    with open_source(source) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            lines += block.count(b"\n")
            last = block[-1:]
            count.add(len(block))
    return digest.hexdigest(), lines + (last != b"\n")


def _parquet_rows(source: SourceFile) -> tuple[int, pa.Schema]:
    with open_source(source) as file:
        try:
            parquet = pq.ParquetFile(file)
            return parquet.metadata.num_rows, parquet.schema_arrow
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the file system's; Arrow's own, for a damaged footer, have no number
            raise InvalidInput(
                source.location, "is not a readable Parquet file", "check that it was written completely"
            ) from error


def _united(schemas: dict[str, pa.Schema]) -> pa.Schema:
    """One schema for all files: columns by name, types widened where they fit, encodings and extensions taken off."""
    first = next(iter(schemas))
    united = pa.schema([])
    for name, schema in schemas.items():
        doubled = [column for column, times in Counter(schema.names).items() if times > 1]
        if doubled:
            raise InvalidInput(name, f"has several columns named {doubled[0]!r}", "rename them")
        try:
            plain = pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])
            united = pa.unify_schemas([united, plain], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InvalidInput(
                name, "has columns whose types do not fit those of the other files", f"compare it with {first}"
            ) from error
        for key in hive_columns(name):
            if key not in united.names:
                united = united.append(pa.field(key, pa.string()))
    return united


def plain_type(type_: pa.DataType) -> pa.DataType:
    """The type of the values themselves, without dictionary encoding or extension."""
    if isinstance(type_, pa.BaseExtensionType):
        return plain_type(type_.storage_type)
    return type_.value_type if pa.types.is_dictionary(type_) else type_
