"""Token ids equal the ones transformers gives, whatever the tokenizer is written in."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from shuntserve.errors import Unavailable
from shuntserve.job.model_files import ModelFiles
from shuntserve.job.tokenizer_pool import ProcessEncoder
from shuntserve.job.tokenizing import RustEncoder, TokenLists, chars_per_token, load_tokenizer, make_encoder
from tests.support.ingesting import ingest_columns
from tests.support.model_dirs import build_model_dir

TEXTS = ["the quick fox", "", "naïve ☃ 🙂", "<s> not special </s>", "x" * 5000, "a\nb\tc"]


def lists(encoded: TokenLists) -> list[list[int]]:
    return [encoded.tokens[begin:end].tolist() for begin, end in pairwise(encoded.offsets.tolist())]


@pytest.mark.parametrize("special_tokens", [True, False])
def test_batches_equal_single_encodings(tokenizer: Any, special_tokens: bool) -> None:
    """A text's ids do not depend on its company, and equal `tokenizer.encode`."""
    encoded = RustEncoder(tokenizer).encode(TEXTS * 200, special_tokens=special_tokens)

    expected = [tokenizer.encode(text, add_special_tokens=special_tokens) for text in TEXTS]
    assert lists(encoded) == expected * 200


def test_truncation_and_padding_saved_with_a_tokenizer_are_not_applied(tmp_path: Path) -> None:
    """A tokenizer.json may ask for both; prompts are neither cut nor filled up."""
    model = build_model_dir(tmp_path / "model")
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(model / "tokenizer.json"))

    done = ingest_columns(tmp_path, model, {"prompt": ["the quick brown fox jumps over the lazy dog"]})

    tokens = done.rows[0]["prompt_token_ids"]
    assert len(tokens) > 4
    assert tokens[-1] != 0


@pytest.fixture(scope="module")
def python_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer is written in Python."""
    model = build_model_dir(tmp_path_factory.mktemp("models") / "python", vocab_size=400)
    for file in [*model.glob("tokenizer*"), *model.glob("special*"), *model.glob("chat_template*")]:
        file.unlink()
    ByT5Tokenizer().save_pretrained(model)
    return model


def test_a_tokenizer_written_in_python_gets_processes_and_gives_the_same_ids(
    tmp_path: Path, python_model: Path
) -> None:
    """Chunks hold what `tokenizer.encode` gives, and no process is left afterwards."""
    texts = ["the quick fox", "naïve ☃"] * 150
    tokenizer = load_tokenizer(ModelFiles(str(python_model), None, python_model), trust_remote_code=False)
    assert not getattr(tokenizer, "is_fast", False)

    done = ingest_columns(tmp_path, python_model, {"prompt": texts})

    assert [done.by_row[row]["prompt_token_ids"] for row in range(300)] == [tokenizer.encode(text) for text in texts]
    assert not [child for child in psutil.Process().children() if "tokenizer_child" in " ".join(child.cmdline())]


def test_a_tokenizer_process_that_dies_ends_the_ingest_and_loses_no_row_in_silence(python_model: Path) -> None:
    """The caller gets Unavailable, not fewer rows."""
    encoder = ProcessEncoder(python_model, trust_remote_code=False, mode="auto", processes=1)
    try:
        psutil.Process(encoder._children[0].process.pid).kill()

        with pytest.raises(Unavailable, match="tokenizer process"):
            encoder.encode(TEXTS * 100, special_tokens=True)
    finally:
        encoder.close()


def test_only_byte_level_vocabularies_bound_the_length_of_a_text() -> None:
    """A vocabulary with an unknown token may fold any text into one id, so it promises nothing."""
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")), unk_token="[UNK]"
    )
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    byte_level = PreTrainedTokenizerFast(tokenizer_object=backend)

    assert chars_per_token(words) is None
    assert chars_per_token(byte_level) == 8


def test_a_long_text_folded_into_one_unknown_token_is_no_reject(tmp_path: Path) -> None:
    """What counts is tokens: a million characters that make one token fit."""
    model = build_model_dir(tmp_path / "model")
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(model)

    done = ingest_columns(tmp_path, model, {"prompt": ["x" * 1_000_000 + " a"]})

    assert done.rows[0]["prompt_token_ids"] == [1, 0]


def test_a_tokenizer_of_another_directory_is_used(tmp_path: Path, model: Path, tokenizer: Any) -> None:
    """`tokenizer` replaces the one that comes with the model."""
    other = build_model_dir(tmp_path / "other", corpus=["zzz yyy xxx"])

    done = ingest_columns(tmp_path, other, {"prompt": ["the fox"]}, tokenizer=str(model))

    assert done.job.tokenizer == str(model)
    assert done.rows[0]["prompt_token_ids"] == tokenizer.encode("the fox")


class Shouting(PreTrainedTokenizerFast):
    """A tokenizer class that does something of its own before its Rust part sees the text."""

    def encode(self, text: Any, *arguments: Any, **settings: Any) -> list[int]:
        return super().encode(text.upper(), *arguments, **settings)


def test_a_class_that_changes_texts_before_its_rust_part_is_asked_itself(model: Path) -> None:
    """Its own `encode` counts, so it gets processes like one written in Python."""
    encoder = make_encoder(
        Shouting.from_pretrained(model), ModelFiles(str(model), None, model), trust_remote_code=False
    )
    encoder.close()

    assert isinstance(encoder, ProcessEncoder)


def test_the_encoder_is_chosen_by_what_the_tokenizer_is(tokenizer: Any, model: Path) -> None:
    """Rust tokenizers stay in this process."""
    encoder = make_encoder(tokenizer, ModelFiles(str(model), None, model), trust_remote_code=False)

    assert isinstance(encoder, RustEncoder)
