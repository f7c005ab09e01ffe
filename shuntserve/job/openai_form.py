"""Answers to an OpenAI batch file in its own form: `output.jsonl` and `errors.jsonl`, custom ids kept.

A row that could not be run because of its request has a `response` with status 400 and OpenAI's error body; a row that
ended for another reason (cancelled, deadline, it crashes the engine) has `response: null` and an `error`, as in
OpenAI's own batches.
`created` is 0: the files depend on the results alone, and a result does not know its hour.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shuntserve.core.resolved import ResolvedJob
from shuntserve.core.states import StopCode
from shuntserve.job.outputs import rejects_of, rejects_of_ingest
from shuntserve.job.parts import JsonlParts, Part, Put

COMPLETIONS_URL = "/v1/completions"
URL_COLUMN = "url"
MODEL_COLUMN = "model"
"""The carried columns that say which endpoint and which model a line asked for."""

_NOT_THE_REQUESTS_FAULT = {
    str(StopCode.CANCELLED): "batch_cancelled",
    str(StopCode.DEADLINE): "batch_expired",
    str(StopCode.BUDGET): "batch_budget_exceeded",
    "engine_crash": "engine_crash",
}


class OpenAiFiles:
    """The two files of one job."""

    def __init__(self, job: ResolvedJob, put: Put) -> None:
        self._job_id = job.job_id
        self._model = job.name or job.model
        self._output = JsonlParts(put, "output")
        self._errors = JsonlParts(put, "errors")

    def add_result(self, result: pa.Table) -> None:
        """The checked commit of the next chunk."""
        self._output.add(self._answers(result.filter(pc.is_null(result.column("code")))))
        self._errors.add(self._refusals(rejects_of(result)))

    def add_ingest_rejects(self, rejects: pa.Table) -> None:
        """Lines that ingest refused."""
        self._errors.add(self._refusals(rejects_of_ingest(rejects)))

    def finish(self) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """(output files, error files), everything written."""
        return self._output.finish(), self._errors.finish()

    def _answers(self, rows: pa.Table) -> Iterator[bytes]:
        lines = rows.to_pylist()
        for (file, row), samples in groupby(lines, key=lambda line: (line["source_file"], line["source_row"])):
            request = self._request_id(file, row)
            several = list(samples)
            yield _line(
                id=f"batch_req_{request}",
                custom_id=several[0]["request_id"],
                response={"status_code": 200, "request_id": f"req_{request}", "body": self._body(request, several)},
                error=None,
            )

    def _body(self, request: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        first = samples[0]
        asked = first.get("carried") or {}
        completion = asked.get(URL_COLUMN) == COMPLETIONS_URL
        generated = sum(sample["completion_tokens"] for sample in samples)
        return {
            "id": f"{'cmpl' if completion else 'chatcmpl'}-{request}",
            "object": "text_completion" if completion else "chat.completion",
            "created": 0,
            "model": asked.get(MODEL_COLUMN) or self._model,
            "choices": [_completion_choice(sample) if completion else _chat_choice(sample) for sample in samples],
            "usage": {
                "prompt_tokens": first["prompt_tokens"],
                "completion_tokens": generated,
                "total_tokens": first["prompt_tokens"] + generated,
            },
        }

    def _refusals(self, rejects: pa.Table) -> Iterator[bytes]:
        for row in rejects.to_pylist():
            request = self._request_id(row["source_file"], row["source_row"])
            where = "" if row["request_id"] is not None else f"{row['source_file']}, line {row['source_row'] + 1}: "
            message = where + row["message"]
            own_code = _NOT_THE_REQUESTS_FAULT.get(row["code"])
            refusal = {"message": message, "type": "invalid_request_error", "param": None, "code": row["code"]}
            yield _line(
                id=f"batch_req_{request}",
                custom_id=row["request_id"],
                response=None
                if own_code
                else {"status_code": 400, "request_id": f"req_{request}", "body": {"error": refusal}},
                error={"code": own_code, "message": message} if own_code else None,
            )

    def _request_id(self, file: str, row: int) -> str:
        return hashlib.sha256(f"{self._job_id}\0{file}\0{row}".encode()).hexdigest()[:32]


def _line(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _chat_choice(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "index": sample["sample_index"],
        "message": {"role": "assistant", "content": sample["output_text"], "refusal": None},
        "logprobs": _chat_logprobs(sample["logprobs"]),
        "finish_reason": sample["finish_reason"],
    }


def _completion_choice(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "index": sample["sample_index"],
        "text": sample["output_text"],
        "logprobs": _completion_logprobs(sample["logprobs"]),
        "finish_reason": sample["finish_reason"],
    }


def _chat_logprobs(positions: Sequence[Sequence[Mapping[str, Any]]] | None) -> dict[str, Any] | None:
    if positions is None:
        return None
    return {
        "content": [{**_entry(entries[0]), "top_logprobs": _top(entries)} for entries in positions],
        "refusal": None,
    }


def _top(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The most likely tokens, best first. The first entry is the sampled one, which may rank below what was asked."""
    wanted = len(entries) - 1 if len(entries) > 1 and entries[0]["rank"] > len(entries) - 1 else len(entries)
    return [_entry(entry) for entry in sorted(entries, key=lambda entry: int(entry["rank"]))[:wanted]]


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    token = entry["token"] or ""
    return {"token": token, "logprob": entry["logprob"], "bytes": list(token.encode())}


def _completion_logprobs(positions: Sequence[Sequence[Mapping[str, Any]]] | None) -> dict[str, Any] | None:
    if positions is None:
        return None
    tokens = [entries[0]["token"] or "" for entries in positions]
    offsets, offset = [], 0
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [entries[0]["logprob"] for entries in positions],
        "top_logprobs": [{entry["token"] or "": entry["logprob"] for entry in entries} for entries in positions],
        "text_offset": offsets,
    }
