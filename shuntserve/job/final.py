"""`final.json`: how a job ended and the exact list of its output parts; created once, then never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from shuntserve.core.states import JobState, RowCounts, StopCode
from shuntserve.errors import Corrupt, InvalidInput, NotFound
from shuntserve.job.parts import Part
from shuntserve.store import keys
from shuntserve.store.port import Bucket

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the committed results. Of a resumed sequence, `tokens_kept` did not have to be generated again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    resumed_rows: int = 0
    tokens_kept: int = 0


@dataclass(frozen=True, slots=True)
class Final:
    """The end of a job. Equal for equal results, whoever finalizes; only `writer` differs."""

    job_id: str
    state: JobState
    counts: RowCounts
    totals: Totals
    format: str
    columns: tuple[tuple[str, str], ...]
    data: tuple[Part, ...]
    rejects: tuple[Part, ...]
    duplicates: int
    missing: int
    """Input rows there more than once, or not at all, as counted; an end with one is never written."""
    made_with: str
    """Versions that decide the bytes of a part."""
    writer: str = ""
    reject_codes: Mapping[str, int] | None = None
    """Rows rejected, by code, the most frequent first. None in an end written before they were counted."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file of the output but the manifest."""
        return tuple(part.path for part in (*self.data, *self.rejects))

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file of the output but the manifest."""
        return {part.path: part.bytes for part in (*self.data, *self.rejects)}

    def manifest(self) -> dict[str, Any]:
        """The body of the output's `_manifest.json`."""
        return {
            "job": self.job_id,
            "state": str(self.state),
            "rows_in": self.counts.rows_in,
            "rows_out": self.counts.rows_out,
            "rows_rejected": self.counts.rows_rejected,
            "rows_stopped": self.counts.rows_stopped,
            "stopped_by": None if self.counts.stopped_by is None else str(self.counts.stopped_by),
            "sequences_out": self.counts.sequences_out,
            "length_finishes": self.counts.length_finishes,
            **asdict(self.totals),
            "format": self.format,
            "columns": [{"name": name, "type": type_} for name, type_ in self.columns],
            "data": [part.to_json() for part in self.data],
            "rejects": [part.to_json() for part in self.rejects],
            "duplicates": self.duplicates,
            "missing": self.missing,
            "made_with": self.made_with,
            "reject_codes": None if self.reject_codes is None else dict(self.reject_codes),
        }

    def same_output(self, other: Final) -> bool:
        """Whether both describe the same files."""
        mine, theirs = (replace(one, writer="", reject_codes=None) for one in (self, other))
        return mine == theirs


def encode(final: Final) -> bytes:
    """The object's bytes; the writer makes an honest create possible."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "writer": final.writer, **final.manifest()}).encode()


def decode(key: str, body: bytes) -> Final:
    """Raises Corrupt when it is not one, InvalidInput when a newer package wrote it."""
    try:
        value = json.loads(body)
        if value["schema_version"] > SCHEMA_VERSION:
            raise InvalidInput(key, f"has schema version {value['schema_version']}", "use a newer ShuntServe")
        return _from_json(value)
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(key, f"is not the end of a job: {error}", "keep the bucket as it is and report this") from error


def _from_json(value: Mapping[str, Any]) -> Final:
    stopped_by = value["stopped_by"]
    return Final(
        job_id=value["job"],
        state=JobState(value["state"]),
        counts=RowCounts(
            rows_in=value["rows_in"],
            rows_out=value["rows_out"],
            rows_rejected=value["rows_rejected"],
            rows_stopped=value["rows_stopped"],
            stopped_by=None if stopped_by is None else StopCode(stopped_by),
            length_finishes=value["length_finishes"],
            sequences_out=value["sequences_out"],
        ),
        totals=Totals(**{name: value[name] for name in Totals.__slots__}),
        format=value["format"],
        columns=tuple((column["name"], column["type"]) for column in value["columns"]),
        data=tuple(Part.from_json(part) for part in value["data"]),
        rejects=tuple(Part.from_json(part) for part in value["rejects"]),
        duplicates=value["duplicates"],
        missing=value["missing"],
        made_with=value["made_with"],
        writer=value["writer"],
        reject_codes=value.get("reject_codes"),
    )


def load_final(bucket: Bucket, job_id: str) -> Final | None:
    """The job's end, or None while it has none."""
    key = keys.final(job_id)
    try:
        return decode(key, bucket.get(key))
    except NotFound:
        return None
