"""Lines of an OpenAI batch file as drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic_core import from_json

from shuntserve.core.openai_request import OpenAiRequest, parse_request
from shuntserve.core.reject_codes import RejectCode, RowRejected
from shuntserve.core.sampling import ResolvedParams
from shuntserve.job.rows import Draft, Rejections, RowContext

OPENAI_CARRIED = [pa.field("url", pa.string()), pa.field("model", pa.string())]
"""What the answer in kind takes besides `custom_id`, which is the request id."""


@dataclass(slots=True)
class _Line:
    """One line as far as it could be read."""

    request_id: str | None = None
    request: OpenAiRequest | None = None
    params: ResolvedParams | None = None
    conversation: list[dict[str, Any]] | None = None


def read_custom_id(line: bytes) -> str | None:
    """The line's id when it has one; None for anything else."""
    value = _parse(line)
    if not isinstance(value, Mapping):
        return None
    custom_id = value.get("custom_id")
    return custom_id if isinstance(custom_id, str) and custom_id else None


@dataclass(frozen=True, slots=True)
class OpenAiRows:
    """Makes drafts of lines."""

    context: RowContext

    def draft(
        self,
        lines: Sequence[tuple[int, bytes]],
        source_file: str,
        duplicates: npt.NDArray[np.bool_] | None,
    ) -> Draft:
        """Check some (line number, line) of one file. `duplicates` marks those whose id an earlier line has."""
        found = Rejections(len(lines))
        parsed = [self._read(index, line, found) for index, (_, line) in enumerate(lines)]
        if duplicates is not None:
            found.add_all(duplicates, RejectCode.DUPLICATE_ID, "an earlier line has the same custom_id")
        texts = self._texts(parsed, found)
        rows = np.array([number for number, _ in lines], dtype=np.int64)
        keep = [int(index) for index in np.nonzero(found.ok)[0]]
        kept = [self._complete(parsed[index]) for index in keep]
        given = [(position, params.seed) for position, (_, params) in enumerate(kept) if params.seed is not None]
        token_ids: list[npt.NDArray[np.int32] | None] = [
            None if request.prompt_token_ids is None else np.array(request.prompt_token_ids, dtype=np.int32)
            for request, _ in kept
        ]
        return Draft(
            source_file=source_file,
            source_rows=rows[keep],
            request_ids=pa.array([parsed[index].request_id for index in keep], pa.string()),
            texts=[texts[index] for index in keep],
            special_tokens=np.array([request.special_tokens for request, _ in kept], dtype=np.bool_),
            token_ids=token_ids,
            params=pa.array([params.params for _, params in kept], pa.string()),
            seeds=self.context.seeds(source_file, rows[keep], given),
            n=np.array([params.n for _, params in kept], dtype=np.int32),
            carried=pa.StructArray.from_arrays(
                [
                    pa.array([request.url for request, _ in kept], pa.string()),
                    pa.array([request.model for request, _ in kept], pa.string()),
                ],
                fields=OPENAI_CARRIED,
            ),
            rejects=found.rejects(source_file, rows, [line.request_id for line in parsed]),
            rows_read=len(lines),
        )

    def _read(self, index: int, raw: bytes, found: Rejections) -> _Line:
        line = _Line()
        value = _parse(raw)
        if not isinstance(value, Mapping):
            found.add(index, RejectCode.WRONG_TYPE, "the line is not a JSON object")
            return line
        custom_id = value.get("custom_id")
        if isinstance(custom_id, str) and custom_id:
            line.request_id = custom_id
        elif custom_id is None or custom_id == "":
            found.add(index, RejectCode.NULL_ID, "custom_id is missing")
        else:
            found.add(index, RejectCode.WRONG_TYPE, "custom_id must be a string")
        try:
            line.request = parse_request(value)
            line.params = self.context.resolve(line.request.params)
            if line.request.messages is not None:
                line.conversation = self.context.chat.prepare(line.request.messages)
            self._check_prompt(line.request)
        except RowRejected as rejected:
            found.add_fault(index, rejected)
        return line

    def _check_prompt(self, request: OpenAiRequest) -> None:
        if request.prompt == "":
            raise RowRejected(RejectCode.EMPTY_PROMPT, "the prompt is empty")
        ids = request.prompt_token_ids
        if ids is not None and not 0 <= min(ids) <= max(ids) < self.context.limits.vocab_size:
            raise RowRejected(
                RejectCode.BAD_TOKEN_IDS, f"token ids must be from 0 to {self.context.limits.vocab_size - 1}"
            )

    def _texts(self, parsed: Sequence[_Line], found: Rejections) -> list[str | None]:
        texts = [line.request.prompt if line.request is not None else None for line in parsed]
        chats = [index for index in np.nonzero(found.ok)[0] if parsed[index].conversation is not None]
        conversations = [parsed[index].conversation or [] for index in chats]
        kwargs = [request.template_kwargs if (request := parsed[index].request) else None for index in chats]
        for index, text in zip(chats, self.context.chat.render(conversations, kwargs), strict=True):
            if isinstance(text, RowRejected):
                found.add_fault(int(index), text)
            else:
                texts[index] = text
        return texts

    @staticmethod
    def _complete(line: _Line) -> tuple[OpenAiRequest, ResolvedParams]:
        assert line.request is not None
        assert line.params is not None
        return line.request, line.params


def _parse(line: bytes) -> Any:
    """The line's value; None when it is no JSON."""
    try:
        return from_json(line.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)
    except ValueError:
        return None
