"""Writes tiny random language models to disk: real checkpoints that load in seconds, made without any download.

The demo, the tests and the benchmarks run real vLLM on them. A checkpoint is a complete Hugging Face directory (config,
generation config, byte-level tokenizer with chat template, safetensors), a pure function of its `TinyModel`.

The text is nonsense but readable: one hidden dimension carries the same positive value everywhere, so a weight on it in
`lm_head` is a bias. It keeps raw bytes and unused ids from being sampled, and sets how often the model ends by itself.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Family = Literal["llama", "qwen2", "qwen3"]

SPECIAL_TOKENS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|think|>", "<|/think|>")
EOS_TOKEN_ID = 0

WORDS = (
    "the a of to and in is it on by was for with as at from this that not but or an be are one all so we can out up "
    "time year way day man thing world life hand part child eye woman place work week case point company number group "
    "problem fact river stone quiet light morning window garden letter summer winter paper music road bridge table "
    "forest silver yellow little early often never under over again across before after around between small large "
    "old new first last long great own other right high different young important few public bad same able cloud "
    "machine train station harbour market signal engine token answer question reason number method result account "
    "water glass bread field horse mountain valley island storm north south east west story teacher student doctor"
).split()

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<|think|><|/think|>' }}{% endif %}{% endif %}"
)

_BIAS_INPUT = 0.5
"""Value of the constant hidden dimension. Larger than a typical activation, so that it survives the final norm."""

_SUPPRESSED_LOGIT = -40.0


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What to write. The defaults give about 1 MB and a step of a few milliseconds on one core."""

    family: Family = "llama"
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 256
    extra_vocabulary: int = 0
    """Ids beyond the tokenizer's own, never sampled: they make logits and embeddings as large as a real model's."""
    max_model_len: int = 2048
    mean_output_tokens: float = 200.0
    """Roughly how long a sampled answer is (temperature 1). Greedy answers are usually longer."""
    tie_word_embeddings: bool = False
    """Tied weights leave no room for the bias: such a model answers any token, readable or not."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.mean_output_tokens <= 1:
            raise ValueError("mean_output_tokens must be above 1")


def write_tiny_model(directory: Path, model: TinyModel = TinyModel()) -> Path:
    """Write `model` into `directory` (made when absent) and return it. The same model gives the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _vocabulary()
    _write_json(directory / "tokenizer.json", _tokenizer(vocabulary, merges))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(model))
    _write_json(directory / "config.json", _config(model, len(vocabulary)))
    _write_json(directory / "generation_config.json", {"eos_token_id": EOS_TOKEN_ID, "transformers_version": "4.57.0"})
    _write_weights(directory / "model.safetensors", model, vocabulary)
    return directory


# --- tokenizer


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte value."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _vocabulary() -> tuple[dict[str, int], list[list[str]]]:
    """Special tokens, then the bytes, then each word with its leading space, grown letter by letter by merges."""
    tokens = [*SPECIAL_TOKENS, *_byte_characters()]
    merges: list[list[str]] = []
    known = set(tokens)
    space = _byte_characters()[0x20]
    for word in dict.fromkeys(WORDS):
        grown = space
        for letter in word:
            if grown + letter not in known:
                merges.append([grown, letter])
                tokens.append(grown + letter)
                known.add(grown + letter)
            grown += letter
    return {token: index for index, token in enumerate(tokens)}, merges


def _tokenizer(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _tokenizer_config(model: TinyModel) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[EOS_TOKEN_ID],
        "pad_token": SPECIAL_TOKENS[EOS_TOKEN_ID],
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.max_model_len,
        "chat_template": CHAT_TEMPLATE,
    }


# --- model


_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16"}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def _padded_vocabulary(model: TinyModel, known_tokens: int) -> int:
    return -(-(known_tokens + model.extra_vocabulary) // 64) * 64


def _config(model: TinyModel, known_tokens: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[model.family]],
        "model_type": model.family,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.intermediate_size,
        "vocab_size": _padded_vocabulary(model, known_tokens),
        "max_position_embeddings": model.max_model_len,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": model.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": EOS_TOKEN_ID,
        "torch_dtype": model.dtype,
        "transformers_version": "4.57.0",
    }
    if model.family == "qwen2" and model.head_dim * model.heads != model.hidden_size:
        raise ValueError("qwen2 takes its head_dim from hidden_size / heads")
    return config


def _write_weights(path: Path, model: TinyModel, vocabulary: dict[str, int]) -> None:
    """A safetensors file: little-endian u64 header length, JSON header with byte ranges, then the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    offset = 0
    for name, tensor in _weights(model, vocabulary).items():
        blob = _to_bytes(tensor, model.dtype)
        end = offset + len(blob)
        header[name] = {"dtype": _DTYPE_NAMES[model.dtype], "shape": tensor.shape, "data_offsets": [offset, end]}
        blobs.append(blob)
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for blob in blobs:
            file.write(blob)


def _weights(model: TinyModel, vocabulary: dict[str, int]) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.Generator(np.random.Philox(model.seed))
    width = model.hidden_size
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim

    def normal(rows: int, columns: int) -> npt.NDArray[np.float32]:
        """Keeps the scale of what it multiplies; row 0 of what writes to the residual is cleared by `residual`."""
        return random.standard_normal((rows, columns), dtype=np.float32) / np.float32(math.sqrt(columns))

    def residual(columns: int) -> npt.NDArray[np.float32]:
        weight = normal(width, columns)
        weight[0] = 0.0  # the constant dimension stays as the embedding set it
        return weight

    embedding = random.standard_normal((_padded_vocabulary(model, len(vocabulary)), width), dtype=np.float32) * 0.1
    embedding[:, 0] = _BIAS_INPUT
    weights = {"model.embed_tokens.weight": embedding}
    for layer in range(model.layers):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": np.ones(width, dtype=np.float32),
            prefix + "self_attn.q_proj.weight": normal(queries, width) * 2,
            prefix + "self_attn.k_proj.weight": normal(keys, width) * 2,
            prefix + "self_attn.v_proj.weight": normal(keys, width),
            prefix + "self_attn.o_proj.weight": residual(queries) * np.float32(0.2),
            prefix + "post_attention_layernorm.weight": np.ones(width, dtype=np.float32),
            prefix + "mlp.gate_proj.weight": normal(model.intermediate_size, width),
            prefix + "mlp.up_proj.weight": normal(model.intermediate_size, width),
            prefix + "mlp.down_proj.weight": residual(model.intermediate_size) * np.float32(0.2),
        }
        if model.family == "qwen2":
            for name, size in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
                weights[f"{prefix}self_attn.{name}.bias"] = np.full(size, 0.01, dtype=np.float32)
        if model.family == "qwen3":
            for name in ("q_norm", "k_norm"):
                weights[f"{prefix}self_attn.{name}.weight"] = np.ones(model.head_dim, dtype=np.float32)
    weights["model.norm.weight"] = np.ones(width, dtype=np.float32)
    if not model.tie_word_embeddings:
        weights["lm_head.weight"] = _lm_head(model, vocabulary, embedding.shape[0], random)
    return weights


def _lm_head(
    model: TinyModel, vocabulary: dict[str, int], rows: int, random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Words get normally distributed logits; everything else is biased out, the end token to its share."""
    spread = 3.0  # standard deviation of a word's logit: near ties stay far above float32 noise
    head = random.standard_normal((rows, model.hidden_size), dtype=np.float32)
    head *= np.float32(spread / math.sqrt(model.hidden_size))
    space = _byte_characters()[0x20]
    words = [vocabulary[space + word] for word in dict.fromkeys(WORDS)]
    bias = np.full(rows, _SUPPRESSED_LOGIT, dtype=np.float32)
    bias[words] = 0.0
    bias[EOS_TOKEN_ID] = math.log(len(words)) - math.log(model.mean_output_tokens)
    # After the final norm the constant dimension holds about 1..3 (the rest has mean square below 1 + 9/width).
    head[:, 0] = bias / 2.0
    return head


def _to_bytes(tensor: npt.NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "float32":
        return np.ascontiguousarray(tensor).tobytes()
    bits = np.ascontiguousarray(tensor).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest even, as torch does
    return rounded.astype(np.uint16).tobytes()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
