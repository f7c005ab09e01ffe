"""Small model directories for tests of spec and ingest: configuration, a real BPE tokenizer, a stub of weights; no
torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"

CHAT_TEMPLATE = r"""
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('no such role: ' + message['role']) -}}
{%- endif -%}
{{- '[' + message['role'] + '] ' + message['content'] + '\n' -}}
{%- endfor -%}
{%- if not enable_thinking | default(true) -%}{{- '[no thinking]\n' -}}{%- endif -%}
{%- if add_generation_prompt -%}{{- '[assistant] ' -}}{%- endif -%}
"""

CORPUS = (
    "the quick brown fox jumps over the lazy dog and runs away into the deep dark forest",
    "classify the following text as positive or negative and answer with one word only",
    "[system] [user] [assistant] you are a helpful assistant who answers questions about weather",
)


def build_model_dir(
    path: Path,
    *,
    corpus: Iterable[str] = CORPUS,
    vocab_size: int = 512,
    max_position_embeddings: int = 256,
    chat_template: str | None = CHAT_TEMPLATE,
    add_bos: bool = True,
    generation_config: dict[str, Any] | None = None,
    weights: bool = True,
) -> Path:
    """A Llama configuration with a byte-level BPE tokenizer trained on the corpus, as `save_pretrained` would write
    it."""
    path.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "max_position_embeddings": max_position_embeddings,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps(config))
    if generation_config is not None:
        (path / "generation_config.json").write_text(json.dumps(generation_config))
    if weights:
        save_file({"model.embed_tokens.weight": np.zeros((4, 4), np.float32)}, path / "model.safetensors")
    return path
