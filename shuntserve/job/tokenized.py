"""Drafts with their token ids: rows as a chunk holds them, and the rows whose prompt does not fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shuntserve.core.reject_codes import RejectCode
from shuntserve.job.rows import Draft, Reject, Rejections
from shuntserve.job.tokenizing import Encoder, TokenLists


@dataclass(frozen=True, slots=True)
class TokenizedRows:
    """Rows in the columns of `schemas.chunk_schema`, the rejects found on the way, and how many input rows these
    were."""

    table: pa.Table
    rejects: list[Reject]
    rows_read: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Tokenizing:
    """What turning a draft into chunk rows takes. Safe to use from several threads.

    A prompt must leave room for one output token; whatever max_tokens says, generation ends at the model's context, as
    in vLLM. `chars_per_token` bounds what a token can stand for (None: no bound is known).
    """

    encoder: Encoder
    schema: pa.Schema
    max_model_len: int
    vocab_size: int
    chars_per_token: int | None

    def tokenize(self, draft: Draft) -> TokenizedRows:
        """Token ids for every row, or a reject."""
        found = Rejections(len(draft))
        self._refuse_monsters(draft, found)
        lists = self._encode(draft, found)
        lengths = np.diff(lists.offsets)
        found.add_all(lengths == 0, RejectCode.EMPTY_PROMPT, "the prompt has no tokens")
        for index in np.nonzero((lengths >= self.max_model_len) & found.ok)[0]:
            found.add(
                int(index),
                RejectCode.PROMPT_TOO_LONG,
                f"the prompt has {lengths[index]} tokens and fills the context of {self.max_model_len}",
            )
        self._refuse_unknown_tokens(lists, found)
        table = pa.Table.from_arrays(self._columns(draft, lists), schema=self.schema)
        if found.ok.all():
            return TokenizedRows(table, draft.rejects, draft.rows_read, int(lists.offsets[-1]))
        rejects = found.rejects(draft.source_file, draft.source_rows, draft.request_ids.to_pylist())
        return TokenizedRows(
            table.filter(pa.array(found.ok)),
            sorted([*draft.rejects, *rejects], key=lambda reject: reject.source_row),
            draft.rows_read,
            int(lengths[found.ok].sum()),
        )

    def _refuse_monsters(self, draft: Draft, found: Rejections) -> None:
        """Texts that cannot fit are not tokenized: it would take a hundred times their size in memory."""
        if self.chars_per_token is None:
            return
        most_chars = self.max_model_len * self.chars_per_token
        for index, text in enumerate(draft.texts):
            if text is not None and len(text) > most_chars:
                found.add(
                    index,
                    RejectCode.PROMPT_TOO_LONG,
                    f"the prompt has {len(text)} characters, too many for {self.max_model_len} tokens",
                )
                draft.texts[index] = ""

    def _encode(self, draft: Draft, found: Rejections) -> TokenLists:
        alike = draft.special_tokens.all() or not draft.special_tokens.any()
        if draft.token_ids is None and alike:
            texts = [text or "" for text in draft.texts]
            return self.encoder.encode(texts, special_tokens=bool(draft.special_tokens.all()))
        lists: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)] * len(draft)
        for special in (True, False):
            indices = [
                index
                for index, text in enumerate(draft.texts)
                if text is not None and draft.special_tokens[index] == special
            ]
            encoded = self.encoder.encode([draft.texts[index] or "" for index in indices], special_tokens=special)
            for position, index in enumerate(indices):
                lists[index] = encoded.tokens[encoded.offsets[position] : encoded.offsets[position + 1]]
        for index, ids in enumerate(draft.token_ids or ()):
            if ids is not None:
                lists[index] = ids
        offsets = np.concatenate(([0], np.cumsum([len(ids) for ids in lists]))).astype(np.int32)
        return TokenLists(np.concatenate(lists) if lists else np.zeros(0, np.int32), offsets)

    def _refuse_unknown_tokens(self, lists: TokenLists, found: Rejections) -> None:
        """A tokenizer may know more tokens than the model has embeddings for; such a token would end the engine."""
        if not len(lists.tokens) or int(lists.tokens.max()) < self.vocab_size:
            return
        for at in np.nonzero(lists.tokens >= self.vocab_size)[0]:
            index = int(np.searchsorted(lists.offsets, at, side="right")) - 1
            found.add(
                index,
                RejectCode.BAD_TOKEN_IDS,
                f"the prompt has token {lists.tokens[at]}, but the model knows only {self.vocab_size} tokens",
            )

    def _columns(self, draft: Draft, lists: TokenLists) -> list[pa.Array]:
        columns = [
            pa.repeat(pa.scalar(draft.source_file, pa.string()), len(draft)),
            pa.array(draft.source_rows, pa.int64()),
            draft.request_ids,
            pa.ListArray.from_arrays(pa.array(lists.offsets, pa.int32()), pa.array(lists.tokens, pa.int32())),
            draft.params,
            pa.array(draft.seeds, pa.int64()),
            pa.array(draft.n, pa.int32()),
        ]
        return [*columns, draft.carried] if draft.carried is not None else columns
