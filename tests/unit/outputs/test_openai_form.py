"""An OpenAI batch file is answered in its own form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from shuntserve.core.resolved import InputKind
from shuntserve.job.finalize import finalize
from shuntserve.job.output_place import OutputPlace
from shuntserve.store.open import open_bucket
from tests.unit.outputs.builders import Job, Row, place_in, spec_with

SPEC = spec_with(input_kind=InputKind.OPENAI_JSONL)
URL = pa.struct([("url", pa.string())])
LOGPROBS = [
    [
        {"token_id": 4, "logprob": -2.5, "rank": 3, "token": "x"},
        {"token_id": 5, "logprob": -0.5, "rank": 1, "token": "é"},
        {"token_id": 6, "logprob": -1.5, "rank": 2, "token": "z"},
    ]
]


@pytest.fixture
def place(tmp_path: Path) -> OutputPlace:
    return place_in(tmp_path / "out")


def answers(tmp_path: Path, place: OutputPlace, rows: list[Row], **more: Any) -> tuple[list[Any], list[Any]]:
    """(lines of output.jsonl, lines of errors.jsonl)."""
    job = Job(open_bucket(tmp_path / "store"), [rows], spec=SPEC, carried=URL, **more).commit()
    finalize(job.bucket, job.spec, job.sealed, URL, place, "w")
    read = [(tmp_path / "out" / name).read_text().splitlines() for name in ("output.jsonl", "errors.jsonl")]
    return [json.loads(line) for line in read[0]], [json.loads(line) for line in read[1]]


def test_a_chat_line_is_answered_as_a_chat_completion(tmp_path: Path, place: OutputPlace) -> None:
    """custom_id, status, choices, usage stand where OpenAI's clients look for them."""
    row = Row(0, ["hi", "hey"], carried={"url": "/v1/chat/completions"})

    ((line,), errors) = answers(tmp_path, place, [row])

    body = line["response"]["body"]
    assert errors == []
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("a.parquet:0", None, 200)
    assert body["object"] == "chat.completion"
    assert [(choice["index"], choice["message"]["content"]) for choice in body["choices"]] == [(0, "hi"), (1, "hey")]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_a_completions_line_is_answered_as_a_text_completion(tmp_path: Path, place: OutputPlace) -> None:
    """The other endpoint has `text` in its choices."""
    row = Row(0, ["hi"], finish="length", carried={"url": "/v1/completions"})

    ((line,), _) = answers(tmp_path, place, [row])

    body = line["response"]["body"]
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "hi")
    assert body["choices"][0]["finish_reason"] == "length"


def test_chat_logprobs_are_in_openais_form(tmp_path: Path, place: OutputPlace) -> None:
    """The sampled token first, then the likeliest in order, with their bytes; a sampled outsider is no top token."""
    row = Row(0, ["x"], carried={"url": "/v1/chat/completions"}, logprobs=LOGPROBS)

    ((line,), _) = answers(tmp_path, place, [row])

    (entry,) = line["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("x", -2.5, [120])
    assert [(top["token"], top["bytes"]) for top in entry["top_logprobs"]] == [("é", [195, 169]), ("z", [122])]


def test_completions_logprobs_are_in_openais_form(tmp_path: Path, place: OutputPlace) -> None:
    """Parallel lists, as the older endpoint has them."""
    row = Row(0, ["x"], carried={"url": "/v1/completions"}, logprobs=LOGPROBS)

    ((line,), _) = answers(tmp_path, place, [row])

    logprobs = line["response"]["body"]["choices"][0]["logprobs"]
    assert (logprobs["tokens"], logprobs["token_logprobs"], logprobs["text_offset"]) == (["x"], [-2.5], [0])
    assert set(logprobs["top_logprobs"][0]) == {"x", "é", "z"}


def test_a_bad_request_has_status_400_in_the_error_file(tmp_path: Path, place: OutputPlace) -> None:
    """Rows at fault themselves keep their custom id, or else say which line they were."""
    rejects = [
        {"source_file": "b.jsonl", "source_row": 1, "request_id": "q", "code": "empty_prompt", "message": "no text"},
        {"source_file": "b.jsonl", "source_row": 2, "request_id": None, "code": "null_id", "message": "no id"},
    ]

    output, errors = answers(tmp_path, place, [], ingest_rejects=rejects)

    assert output == []
    assert [line["custom_id"] for line in errors] == ["q", None]
    assert [line["response"]["status_code"] for line in errors] == [400, 400]
    assert errors[0]["response"]["body"]["error"]["code"] == "empty_prompt"
    assert errors[1]["response"]["body"]["error"]["message"] == "b.jsonl, line 3: no id"
    assert [line["error"] for line in errors] == [None, None]


def test_a_cancelled_row_has_no_response_but_an_error(tmp_path: Path, place: OutputPlace) -> None:
    """What is not the request's fault is told as OpenAI tells it: response null, error with a code."""
    rows = [
        Row(0, ["par"], code="cancelled", carried={"url": "/v1/completions"}),
        Row(1, [""], code="engine_crash", carried={"url": "/v1/completions"}),
    ]

    _, errors = answers(tmp_path, place, rows)

    assert [line["response"] for line in errors] == [None, None]
    assert [line["error"]["code"] for line in errors] == ["batch_cancelled", "engine_crash"]


def test_ids_of_answers_are_unique_and_repeatable(tmp_path: Path, place: OutputPlace) -> None:
    """Each line has an id of its own, which a second run makes again."""
    rows = [Row(row, carried={"url": "/v1/completions"}) for row in range(20)]

    output, _ = answers(tmp_path, place, rows)

    assert len({line["id"] for line in output}) == 20
    assert len({line["response"]["body"]["id"] for line in output}) == 20
