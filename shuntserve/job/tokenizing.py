"""Text to token ids, as vLLM would make them, on all cores.

Tokenizers written in Rust use every core by themselves and let other threads run meanwhile. Those written in Python
get processes of their own (`job.tokenizer_child`), which speak Arrow over pipes and end with the process that started
them.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shuntserve.errors import InvalidInput
from shuntserve.job.hf import auto_tokenizer
from shuntserve.job.model_files import ModelFiles, hash_files

_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
)
_BATCH_TEXTS = 512
_BATCH_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class TokenLists:
    """Token ids of some texts, end to end: text i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]

    @staticmethod
    def of(lists: Sequence[Sequence[int]]) -> TokenLists:
        flat = array("i")
        for ids in lists:
            flat.extend(ids)
        offsets = np.zeros(len(lists) + 1, dtype=np.int32)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        return TokenLists(np.frombuffer(flat, dtype=np.int32) if flat else np.zeros(0, np.int32), offsets)


class Encoder(Protocol):
    """Turns texts into token ids. Safe to call from several threads."""

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> TokenLists:
        """`special_tokens`: add what the tokenizer puts around a plain prompt (BOS), as vLLM does for prompts but not
        chats."""
        ...

    def close(self) -> None:
        """End the encoder's processes, if it has any."""
        ...


def load_tokenizer(files: ModelFiles, *, trust_remote_code: bool, mode: str = "auto") -> Any:
    """The tokenizer as transformers loads it, with the options vLLM loads it with. Raises InvalidInput."""
    thing = f"tokenizer {files.name}"
    if mode == "mistral":
        raise InvalidInput(thing, "tokenizer_mode mistral is not supported", "use the model's Hugging Face tokenizer")
    try:
        return auto_tokenizer().from_pretrained(
            files.directory,
            trust_remote_code=trust_remote_code,
            use_fast=mode != "slow",
            truncation_side="left",
            mistral_format=False,
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        # What transformers raises for a directory without tokenizer files depends on which one it looked for last.
        raise InvalidInput(
            thing,
            f"cannot be loaded ({type(error).__name__})",
            "name a directory with tokenizer.json, or set tokenizer",
        ) from error


def hash_tokenizer(files: ModelFiles) -> str:
    """SHA-256 over everything tokenization depends on, chat templates included."""
    paths = {path for pattern in _TOKENIZER_FILES for path in files.directory.glob(pattern) if path.is_file()}
    paths |= {path for path in (files.directory / "additional_chat_templates").glob("*") if path.is_file()}
    return hash_files(list(paths))


def make_encoder(tokenizer: Any, files: ModelFiles, *, trust_remote_code: bool, mode: str = "auto") -> Encoder:
    """The encoder for a tokenizer: in this process when it is written in Rust, else in one process a core.

    A tokenizer class may do something of its own around its Rust part; then it counts as written in Python.
    """
    if getattr(tokenizer, "is_fast", False) and hasattr(tokenizer, "backend_tokenizer"):
        encoder = RustEncoder(tokenizer)
        if _agree(tokenizer, encoder):
            return encoder
    from shuntserve.job.tokenizer_pool import ProcessEncoder

    return ProcessEncoder(
        files.directory, trust_remote_code=trust_remote_code, mode=mode, processes=min(8, os.cpu_count() or 1)
    )


_PROBES = (
    "",
    "Hello, world!",
    "  two  spaces",
    "line\n\nline\ttab ",
    "naïve ☃ 🙂 中文",
    "<s></s><|endoftext|>[INST]",
    "12345.6",
)


def _agree(tokenizer: Any, encoder: Encoder) -> bool:
    """Whether the encoder gives what the tokenizer itself gives, on texts that tokenizers treat differently."""
    for special_tokens in (True, False):
        encoded = encoder.encode(_PROBES, special_tokens=special_tokens)
        for index, text in enumerate(_PROBES):
            ids = encoded.tokens[encoded.offsets[index] : encoded.offsets[index + 1]].tolist()
            if ids != list(tokenizer.encode(text, add_special_tokens=special_tokens)):
                return False
    return True


class RustEncoder:
    """A `tokenizers` tokenizer: `encode_batch_fast` uses all cores and leaves the interpreter free."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        # What a tokenizer.json may have been saved with; a prompt is neither cut nor padded.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> TokenLists:
        flat = array("i")
        lengths: list[int] = []
        for begin, end in _batches(texts):
            for encoding in self._backend.encode_batch_fast(texts[begin:end], add_special_tokens=special_tokens):
                ids = encoding.ids
                flat.fromlist(ids)
                lengths.append(len(ids))
        offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        return TokenLists(np.frombuffer(flat, dtype=np.int32) if flat else np.zeros(0, np.int32), offsets)

    def close(self) -> None:
        pass


def chars_per_token(tokenizer: Any) -> int | None:
    """More characters than any token can stand for; None when the tokenizer gives no such promise.

    Only a byte-level vocabulary does: others fold text of any length into one unknown token. The factor covers Unicode
    normalization, which may join up to four characters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    description = json.loads(backend.to_str())
    model = description.get("model") or {}
    byte_level = bool(model.get("byte_fallback")) or '"ByteLevel"' in json.dumps(description.get("pre_tokenizer"))
    if model.get("type") != "BPE" or not byte_level:
        return None
    return 4 * max(len(token) for token in tokenizer.get_vocab())


def _batches(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Ranges of texts small enough that their encodings, some hundred bytes a token, stay few."""
    ranges: list[tuple[int, int]] = []
    begin, chars = 0, 0
    for index, text in enumerate(texts):
        if index > begin and (index - begin >= _BATCH_TEXTS or chars + len(text) > _BATCH_CHARS):
            ranges.append((begin, index))
            begin, chars = index, 0
        chars += len(text)
    if begin < len(texts):
        ranges.append((begin, len(texts)))
    return ranges
