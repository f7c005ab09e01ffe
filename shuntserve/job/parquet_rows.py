"""Rows of Parquet input, checked column by column; only rows that need it are looked at one by one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import from_json

from shuntserve.core.prompt_template import PromptTemplate
from shuntserve.core.reject_codes import RejectCode, RowRejected
from shuntserve.core.resolved import ResolvedJob
from shuntserve.job.carried import carried_type, decode_fields
from shuntserve.job.parquet_columns import PROMPT_COLUMNS, as_mask, to_text
from shuntserve.job.rows import Draft, Rejections, RowContext


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """Makes drafts of record batches of one job's input."""

    job: ResolvedJob
    context: RowContext
    template: PromptTemplate | None
    carried: pa.StructType | None

    @staticmethod
    def of(job: ResolvedJob, context: RowContext) -> ParquetRows:
        template = PromptTemplate.parse(job.prompt_template) if job.prompt_template is not None else None
        return ParquetRows(job, context, template, carried_type(job))

    @property
    def fields(self) -> list[pa.Field]:
        """The input columns that are read, with their types."""
        fields = {field.name: field for field in decode_fields(self.job.prompt_schema)}
        if self.carried is not None:
            for (column, _), field in zip(self.job.carried_columns, self.carried, strict=True):
                fields.setdefault(column, pa.field(column, field.type))
        return list(fields.values())

    def draft(
        self, batch: pa.RecordBatch, source_file: str, first_row: int, duplicates: npt.NDArray[np.bool_] | None
    ) -> Draft:
        """Check one batch. `duplicates` marks rows whose id an earlier row has."""
        rows = np.arange(first_row, first_row + batch.num_rows, dtype=np.int64)
        found = Rejections(batch.num_rows)
        ids = self._request_ids(batch, source_file, rows, found)
        if duplicates is not None:
            found.add_all(duplicates, RejectCode.DUPLICATE_ID, "an earlier row has the same request id")
        texts, special, token_ids = self._prompts(batch, found)
        params, seeds_given, n = self._params(batch, found)
        seeds = self.context.seeds(source_file, rows, seeds_given)

        rejects = found.rejects(source_file, rows, ids.to_pylist()) if not found.ok.all() else []
        keep = np.nonzero(found.ok)[0]
        everything = len(keep) == batch.num_rows
        carried = self._carried(batch)
        return Draft(
            source_file=source_file,
            source_rows=rows[keep],
            request_ids=ids if everything else ids.take(pa.array(keep)),
            texts=texts if everything else [texts[index] for index in keep],
            special_tokens=special[keep],
            token_ids=None if token_ids is None else [token_ids[index] for index in keep],
            params=params if everything else params.take(pa.array(keep)),
            seeds=seeds[keep],
            n=n[keep],
            carried=carried if carried is None or everything else carried.take(pa.array(keep)),
            rejects=rejects,
            rows_read=batch.num_rows,
        )

    def _column(self, batch: pa.RecordBatch, ours: str) -> pa.Array | None:
        theirs = self.job.columns.get(ours)
        return None if theirs is None else batch.column(theirs)

    def _request_ids(
        self, batch: pa.RecordBatch, source_file: str, rows: npt.NDArray[np.int64], found: Rejections
    ) -> pa.Array:
        column = self._column(batch, "request_id")
        if column is None:
            return pc.binary_join_element_wise(source_file, pa.array(rows).cast(pa.string()), ":")
        ids, broken = to_text(column)
        found.add_all(broken, RejectCode.WRONG_TYPE, "request_id is not valid UTF-8")
        missing = pc.fill_null(pc.equal(pc.binary_length(ids), 0), True)
        found.add_all(as_mask(missing), RejectCode.NULL_ID, "request_id is null or empty")
        return ids

    def _prompts(
        self, batch: pa.RecordBatch, found: Rejections
    ) -> tuple[list[str | None], npt.NDArray[np.bool_], list[npt.NDArray[np.int32] | None] | None]:
        """Texts, whether each gets special tokens, and given token ids (None when no row has any)."""
        count = batch.num_rows
        prompts = self._prompt_texts(batch, found)
        messages, given_ids = self._column(batch, "messages"), self._column(batch, "prompt_token_ids")
        has = [as_mask(column.is_valid()) for column in (prompts, messages, given_ids) if column is not None]
        sources = np.sum(has, axis=0)
        found.add_all(sources == 0, RejectCode.NO_PROMPT, self._no_prompt_message())
        found.add_all(
            sources > 1, RejectCode.BOTH_PROMPT_AND_MESSAGES, f"more than one of {', '.join(PROMPT_COLUMNS)} is given"
        )
        texts: list[str | None] = [None] * count
        special = np.ones(count, dtype=np.bool_)
        if prompts is not None:
            empty = pc.fill_null(pc.equal(pc.binary_length(prompts), 0), False)
            found.add_all(as_mask(empty), RejectCode.EMPTY_PROMPT, "the prompt is empty")
            texts = prompts.to_pylist()
        if messages is not None or self.job.chat:
            self._render(prompts, texts, messages, special, found)
        if given_ids is None:
            return texts, special, None
        return texts, special, self._given_ids(given_ids, found)

    def _no_prompt_message(self) -> str:
        if self.template is not None:
            return f"a column of prompt_template is null ({', '.join(self.template.columns)})"
        return f"none of {', '.join(PROMPT_COLUMNS)} is given"

    def _prompt_texts(self, batch: pa.RecordBatch, found: Rejections) -> pa.Array | None:
        if self.template is None:
            column = self._column(batch, "prompt")
            if column is None:
                return None
            prompts, broken = to_text(column)
            found.add_all(broken, RejectCode.WRONG_TYPE, "prompt is not valid UTF-8")
            return prompts
        pieces: list[Any] = [self.template.literals[0]]
        for name, literal in zip(self.template.columns, self.template.literals[1:], strict=True):
            values, broken = to_text(batch.column(name))
            found.add_all(broken, RejectCode.WRONG_TYPE, f"column {name!r} is not valid UTF-8")
            pieces += [values, literal]
        return pc.binary_join_element_wise(*pieces, "")

    def _render(
        self,
        prompts: pa.Array | None,
        texts: list[str | None],
        messages: pa.Array | None,
        special: npt.NDArray[np.bool_],
        found: Rejections,
    ) -> None:
        """Put messages, and prompts where the job chats, through the chat template."""
        values = messages.to_pylist() if messages is not None else [None] * len(texts)
        indices: list[int] = []
        conversations: list[list[dict[str, Any]]] = []
        for index in np.nonzero(found.ok)[0]:
            text = texts[index]
            if values[index] is None and (text is None or not self.job.chat):
                continue
            try:
                value = values[index]
                conversations.append(
                    self.context.chat.prepare(value) if value is not None else self.context.chat.of_prompt(text or "")
                )
                indices.append(int(index))
            except RowRejected as rejected:
                found.add_fault(int(index), rejected)
        rendered = self.context.chat.render(conversations, [None] * len(conversations))
        for index, text_or_fault in zip(indices, rendered, strict=True):
            if isinstance(text_or_fault, RowRejected):
                found.add_fault(index, text_or_fault)
            else:
                texts[index] = text_or_fault
                special[index] = False

    def _given_ids(self, column: pa.Array, found: Rejections) -> list[npt.NDArray[np.int32] | None]:
        lists: list[npt.NDArray[np.int32] | None] = []
        for index, value in enumerate(column):
            ids = value.values
            if ids is None:
                lists.append(None)
                continue
            if len(ids) == 0:
                found.add(index, RejectCode.EMPTY_PROMPT, "prompt_token_ids is empty")
            elif ids.null_count:
                found.add(index, RejectCode.BAD_TOKEN_IDS, "prompt_token_ids holds a null")
            elif not 0 <= pc.min(ids).as_py() <= pc.max(ids).as_py() < self.context.limits.vocab_size:
                found.add(
                    index, RejectCode.BAD_TOKEN_IDS, f"token ids must be from 0 to {self.context.limits.vocab_size - 1}"
                )
            else:
                lists.append(ids.to_numpy(zero_copy_only=False).astype(np.int32))
                continue
            lists.append(None)
        return lists

    def _params(
        self, batch: pa.RecordBatch, found: Rejections
    ) -> tuple[pa.Array, list[tuple[int, int]], npt.NDArray[np.int32]]:
        """Resolved parameters, seeds that rows bring themselves as (index, seed), and n."""
        keys = self._param_keys(batch, found)
        unique, inverse = np.unique(keys, return_inverse=True) if keys is not None else (np.array([""]), None)
        outcomes = [self.context.resolve_cached(str(key), _raw_params(str(key))) for key in unique]
        positions = np.zeros(batch.num_rows, dtype=np.int64) if inverse is None else inverse
        texts, ns, seeds = [], [], []
        for position, outcome in enumerate(outcomes):
            if isinstance(outcome, RowRejected):
                for index in np.nonzero(positions == position)[0]:
                    found.add_fault(int(index), outcome)
                texts.append("")
                ns.append(1)
                continue
            texts.append(outcome.params)
            ns.append(outcome.n)
            if outcome.seed is not None:
                seeds += [(int(index), outcome.seed) for index in np.nonzero(positions == position)[0]]
        params = pa.DictionaryArray.from_arrays(pa.array(positions, pa.int32()), pa.array(texts, pa.string()))
        return params.cast(pa.string()), seeds, np.array(ns, dtype=np.int32)[positions]

    def _param_keys(self, batch: pa.RecordBatch, found: Rejections) -> npt.NDArray[np.object_] | None:
        """For every row a text from which `_raw_params` makes its parameters; None when no row has any of its own."""
        limits, sampling = self._column(batch, "max_tokens"), self._column(batch, "sampling_params")
        if limits is None and sampling is None:
            return None
        count = batch.num_rows
        limit_texts = ["null"] * count if limits is None else [_number_text(value) for value in limits.to_pylist()]
        if sampling is None:
            own = [""] * count
        elif pa.types.is_struct(sampling.type) or pa.types.is_map(sampling.type):
            own = [_struct_text(value) for value in sampling.to_pylist()]
        else:
            values, broken = to_text(sampling)
            found.add_all(broken, RejectCode.WRONG_TYPE, "sampling_params is not valid UTF-8")
            own = [value or "" for value in values.to_pylist()]
        return np.array([f"{limit}\n{text}" for limit, text in zip(limit_texts, own, strict=True)], dtype=np.object_)

    def _carried(self, batch: pa.RecordBatch) -> pa.StructArray | None:
        if self.carried is None:
            return None
        arrays = [batch.column(column) for column, _ in self.job.carried_columns]
        return pa.StructArray.from_arrays(arrays, fields=list(self.carried))


def _raw_params(key: str) -> dict[str, Any] | RowRejected:
    """The parameters a key of `_param_keys` stands for."""
    if not key:
        return {}
    limit, _, text = key.partition("\n")
    raw: Any = {}
    if text:
        try:
            raw = from_json(text, allow_inf_nan=False)
        except ValueError:
            return RowRejected(RejectCode.BAD_PARAMETER, "sampling_params is not valid JSON")
        if not isinstance(raw, dict):
            return RowRejected(RejectCode.WRONG_TYPE, "sampling_params must be a JSON object")
    own_limit = json.loads(limit)
    if own_limit is not None:
        if raw.get("max_tokens", own_limit) not in (own_limit, None):
            return RowRejected(RejectCode.BAD_PARAMETER, "max_tokens differs from sampling_params.max_tokens")
        raw["max_tokens"] = own_limit
    return raw


def _number_text(value: float | None) -> str:
    """A limit as JSON; NaN, which pandas writes for a missing number, is null."""
    return "null" if value is None or value != value else json.dumps(value)


def _struct_text(value: Any) -> str:
    if value is None:
        return ""
    pairs = value.items() if isinstance(value, dict) else value
    return json.dumps({name: item for name, item in pairs if item is not None}, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """A JSON value for what Arrow gives as a Python object (a decimal, a date); checking it then fails by name."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)
