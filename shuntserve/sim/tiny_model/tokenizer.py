"""The byte-level tokenizer of the tiny models, with a vocabulary of short English words and a chat template."""

from __future__ import annotations

from typing import Any

SPECIAL_TOKENS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|think|>", "<|/think|>")
EOS_TOKEN_ID = 0

_WORDS = (
    "the a of to and in is it on by was for with as at from this that not but or an be are one all so we can out up "
    "time year way day man thing world life hand part child eye woman place work week case point company number group "
    "problem fact river stone quiet light morning window garden letter summer winter paper music road bridge table "
    "forest silver yellow little early often never under over again across before after around between small large "
    "old new first last long great own other right high different young important few public bad same able cloud "
    "machine train station harbour market signal engine token answer question reason number method result account "
    "water glass bread field horse mountain valley island storm north south east west story teacher student doctor"
)
WORDS = _WORDS.split()

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<|think|><|/think|>' }}{% endif %}{% endif %}"
)


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte value."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def vocabulary_and_merges() -> tuple[dict[str, int], list[list[str]]]:
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


def word_ids(vocabulary: dict[str, int]) -> list[int]:
    """Ids of whole words, with their leading space."""
    space = _byte_characters()[0x20]
    return [vocabulary[space + word] for word in dict.fromkeys(WORDS)]


def tokenizer(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
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


def tokenizer_config(max_model_len: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[EOS_TOKEN_ID],
        "pad_token": SPECIAL_TOKENS[EOS_TOKEN_ID],
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_model_len,
        "chat_template": CHAT_TEMPLATE,
    }
