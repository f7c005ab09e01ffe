"""Parquet rows: which become chunk rows, with which prompt, parameters, ids and columns, and which are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shuntserve.core.sampling import DEFAULT_MAX_TOKENS
from shuntserve.errors import InvalidInput
from tests.support.ingesting import ingest_columns, ingest_files


def test_a_prompt_gets_the_tokens_the_tokenizer_gives_it(tmp_path: Path, model: Path, tokenizer: Any) -> None:
    """Prompts are encoded with special tokens (BOS), as vLLM encodes them."""
    texts = ["the quick brown fox", "naïve ☃ 🙂 text", " leading space", "a\x00b"]

    done = ingest_columns(tmp_path, model, {"prompt": texts})

    assert [done.by_row[row]["prompt_token_ids"] for row in range(4)] == [tokenizer.encode(text) for text in texts]
    assert done.by_row[0]["prompt_token_ids"][0] == tokenizer.bos_token_id


def test_messages_get_the_tokens_of_the_chat_template_without_a_second_bos(
    tmp_path: Path, model: Path, tokenizer: Any
) -> None:
    """Chats are rendered with a generation prompt and encoded without special tokens, as vLLM does."""
    messages = [
        {"role": "system", "content": "you are a helpful assistant"},
        {"role": "user", "content": "the weather"},
    ]

    done = ingest_columns(tmp_path, model, {"messages": [messages]})

    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert done.rows[0]["prompt_token_ids"] == expected
    assert tokenizer.bos_token_id not in expected


def test_messages_may_be_json_text(tmp_path: Path, model: Path) -> None:
    """A messages column of JSON strings gives the same tokens as one of structs."""
    as_text = ingest_columns(tmp_path, model, {"messages": ['[{"role": "user", "content": "the fox"}]']})
    as_structs = ingest_columns(tmp_path, model, {"messages": [[{"role": "user", "content": "the fox"}]]})

    assert as_text.rows[0]["prompt_token_ids"] == as_structs.rows[0]["prompt_token_ids"]


def test_system_puts_prompts_through_the_chat_template(tmp_path: Path, model: Path, tokenizer: Any) -> None:
    """With `system`, a plain prompt becomes a user message after it."""
    done = ingest_columns(tmp_path, model, {"prompt": ["the fox"]}, system="answer with one word")

    assert tokenizer.decode(done.rows[0]["prompt_token_ids"]) == (
        "[system] answer with one word\n[user] the fox\n[assistant] "
    )


def test_a_rows_own_system_message_stands_over_the_jobs(tmp_path: Path, model: Path, tokenizer: Any) -> None:
    """`system` is added only where messages have none."""
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "fox"}]
    none = [{"role": "user", "content": "fox"}]

    done = ingest_columns(tmp_path, model, {"messages": [own, none]}, system="yours")

    texts = [tokenizer.decode(done.by_row[row]["prompt_token_ids"]) for row in range(2)]
    assert texts == ["[system] mine\n[user] fox\n[assistant] ", "[system] yours\n[user] fox\n[assistant] "]


def test_chat_template_and_its_variables_can_be_given(tmp_path: Path, model: Path, tokenizer: Any) -> None:
    """`chat_template_kwargs` reach the template, and `chat_template` replaces it, as text or as a file."""
    file = tmp_path / "plain.jinja"
    file.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    columns = {"messages": [[{"role": "user", "content": "fox"}]]}

    thinking_off = ingest_columns(tmp_path, model, columns, chat_template_kwargs={"enable_thinking": False})
    from_text = ingest_columns(tmp_path, model, columns, chat_template=file.read_text())
    from_file = ingest_columns(tmp_path, model, columns, chat_template=str(file))

    assert "[no thinking]" in tokenizer.decode(thinking_off.rows[0]["prompt_token_ids"])
    assert tokenizer.decode(from_text.rows[0]["prompt_token_ids"]) == "<fox>"
    assert from_file.job.job_id == from_text.job.job_id


def test_token_ids_are_taken_as_they_are(tmp_path: Path, model: Path) -> None:
    """prompt_token_ids go to the chunk unchanged."""
    done = ingest_columns(tmp_path, model, {"prompt_token_ids": [[5, 6, 7], [9]]})

    assert [done.by_row[row]["prompt_token_ids"] for row in range(2)] == [[5, 6, 7], [9]]


def test_rows_of_one_file_may_use_different_prompt_columns(tmp_path: Path, model: Path, tokenizer: Any) -> None:
    """Exactly one of prompt, messages and prompt_token_ids a row, chosen row by row."""
    columns = {
        "prompt": ["the fox", None, None],
        "messages": [None, '[{"role": "user", "content": "the dog"}]', None],
        "prompt_token_ids": [None, None, [4, 5]],
    }

    done = ingest_columns(tmp_path, model, columns)

    assert done.rejects == []
    assert done.by_row[0]["prompt_token_ids"] == tokenizer.encode("the fox")
    assert tokenizer.decode(done.by_row[1]["prompt_token_ids"]).startswith("[user] the dog")
    assert done.by_row[2]["prompt_token_ids"] == [4, 5]


def test_a_prompt_template_fills_in_named_columns(tmp_path: Path, model: Path, tokenizer: Any) -> None:
    """Text and numbers are filled in, doubled braces are braces, and the columns are carried as well."""
    columns = {"text": ["the fox", None], "year": [1999, 2000]}

    done = ingest_columns(tmp_path, model, columns, prompt_template="{{classify}} {text} ({year}):")

    assert (
        tokenizer.decode(done.by_row[0]["prompt_token_ids"], skip_special_tokens=True) == "{classify} the fox (1999):"
    )
    assert done.by_row[0]["carried"] == {"text": "the fox", "year": 1999}
    assert done.codes == {1: "no_prompt"}
    assert "text" in done.message(1)


def test_columns_are_mapped_and_the_others_carried(tmp_path: Path, model: Path) -> None:
    """`columns` names the user's columns; those that are not ours come along; clashing names get `input_`."""
    columns = {
        "question": ["the fox"],
        "uuid": [17],
        "label": ["x"],
        "nested": [{"a": [1, 2], "b": None}],
        "finish_reason": ["length"],
    }

    done = ingest_columns(tmp_path, model, columns, columns={"prompt": "question", "request_id": "uuid"})

    assert done.rows[0]["request_id"] == "17"
    assert done.rows[0]["carried"] == {
        "label": "x",
        "nested": {"a": [1, 2], "b": None},
        "input_finish_reason": "length",
    }


def test_carry_chooses_what_comes_along(tmp_path: Path, model: Path) -> None:
    """`carry` lists the columns to carry, the prompt's own if wanted; an empty list carries nothing."""
    columns = {"prompt": ["the fox"], "a": [1], "b": [2]}

    some = ingest_columns(tmp_path, model, columns, carry=["b", "prompt"])
    none = ingest_columns(tmp_path, model, columns, carry=[])

    assert some.rows[0]["carried"] == {"b": 2, "prompt": "the fox"}
    assert "carried" not in none.rows[0]


def test_ids_are_made_from_file_and_row_when_there_are_none(tmp_path: Path, model: Path) -> None:
    """Without a request_id column a row's id says where it came from."""
    done = ingest_columns(tmp_path, model, {"prompt": ["the fox", "the dog"]})

    assert sorted(row["request_id"] for row in done.rows) == ["rows.parquet:0", "rows.parquet:1"]


BAD_ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    ("nothing given", {"prompt": None}, "no_prompt", "none of prompt"),
    ("empty prompt", {"prompt": ""}, "empty_prompt", "empty"),
    ("over-long prompt", {"prompt": "the fox " * 200}, "prompt_too_long", "fills the context of 256"),
    ("monstrous prompt", {"prompt": "x" * 2_000_000}, "prompt_too_long", "2000000 characters"),
    ("two kinds of prompt", {"prompt_token_ids": [1, 2]}, "both_prompt_and_messages", "more than one"),
    ("messages and prompt", {"messages": "[]"}, "both_prompt_and_messages", "more than one"),
    ("no messages", {"prompt": None, "messages": "[]"}, "empty_prompt", "messages are empty"),
    ("broken messages", {"prompt": None, "messages": "[{]"}, "bad_messages", "not valid JSON"),
    ("messages of another kind", {"prompt": None, "messages": '"hi"'}, "bad_messages", "must be a list"),
    ("message without role", {"prompt": None, "messages": '[{"content": "x"}]'}, "bad_messages", "no role"),
    ("message without content", {"prompt": None, "messages": '[{"role": "user"}]'}, "bad_messages", "no content"),
    (
        "picture",
        {"prompt": None, "messages": '[{"role": "user", "content": [{"type": "image_url"}]}]'},
        "bad_messages",
        "only text is read",
    ),
    (
        "refused by the template",
        {"prompt": None, "messages": '[{"role": "robot", "content": "x"}]'},
        "template_error",
        "no such role: robot",
    ),
    ("no tokens", {"prompt": None, "prompt_token_ids": []}, "empty_prompt", "empty"),
    ("token beyond the vocabulary", {"prompt": None, "prompt_token_ids": [512]}, "bad_token_ids", "from 0 to 511"),
    ("negative token", {"prompt": None, "prompt_token_ids": [-1]}, "bad_token_ids", "from 0 to 511"),
    ("null token", {"prompt": None, "prompt_token_ids": [1, None]}, "bad_token_ids", "null"),
    ("too many given tokens", {"prompt": None, "prompt_token_ids": [3] * 256}, "prompt_too_long", "256 tokens"),
    ("null id", {"request_id": None}, "null_id", "null or empty"),
    ("empty id", {"request_id": ""}, "null_id", "null or empty"),
    ("repeated id", {"request_id": "good-0"}, "duplicate_id", "earlier row"),
    ("unknown parameter", {"sampling_params": '{"temprature": 1}'}, "unknown_parameter", "'temperature'"),
    ("another program's name", {"sampling_params": '{"max_new_tokens": 1}'}, "unknown_parameter", "'max_tokens'"),
    ("unsupported parameter", {"sampling_params": '{"best_of": 2}'}, "unsupported_parameter", "use n"),
    ("parameter out of range", {"sampling_params": '{"top_p": 0}'}, "bad_parameter", "top_p must be in (0, 1]"),
    ("parameters that are no JSON", {"sampling_params": "{"}, "bad_parameter", "not valid JSON"),
    ("parameters that are no object", {"sampling_params": "[1]"}, "wrong_type", "must be a JSON object"),
    ("max_tokens of zero", {"max_tokens": 0.0}, "bad_parameter", "max_tokens must be from 1"),
    ("max_tokens with a fraction", {"max_tokens": 1.5}, "bad_parameter", "whole number"),
    ("contradicting limits", {"max_tokens": 3.0, "sampling_params": '{"max_tokens": 4}'}, "bad_parameter", "differs"),
    ("n for greedy sampling", {"sampling_params": '{"n": 2, "temperature": 0}'}, "bad_parameter", "temperature 0"),
    ("min above max", {"sampling_params": '{"min_tokens": 9, "max_tokens": 4}'}, "bad_parameter", "greater than"),
]

GOOD: dict[str, Any] = {
    "request_id": "",
    "prompt": "the quick fox",
    "messages": None,
    "prompt_token_ids": None,
    "sampling_params": None,
    "max_tokens": None,
}

TYPES = {
    "request_id": pa.string(),
    "prompt": pa.string(),
    "messages": pa.string(),
    "prompt_token_ids": pa.list_(pa.int64()),
    "sampling_params": pa.string(),
    "max_tokens": pa.float64(),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Any:
    """One job in which good and bad rows take turns."""
    rows = []
    for index, (_, changes, _, _) in enumerate(BAD_ROWS):
        rows.append({**GOOD, "request_id": f"good-{index}"})
        rows.append({**GOOD, "request_id": f"bad-{index}", **changes})
    columns = {name: pa.array([row[name] for row in rows], type_) for name, type_ in TYPES.items()}
    return ingest_columns(tmp_path_factory.mktemp("mixed"), model, columns)


@pytest.mark.parametrize("index", range(len(BAD_ROWS)), ids=[name for name, *_ in BAD_ROWS])
def test_a_bad_row_costs_itself_and_says_why(mixed: Any, index: int) -> None:
    """Each kind of bad row is rejected with its code and a message that helps; its neighbours are not."""
    _, changes, code, message = BAD_ROWS[index]

    reject = next(reject for reject in mixed.rejects if reject["source_row"] == 2 * index + 1)

    assert reject["code"] == code
    assert message in reject["message"]
    assert reject["request_id"] == changes.get("request_id", f"bad-{index}")


def test_every_good_row_survives_its_bad_neighbours(mixed: Any) -> None:
    """Rejects are exactly the planted rows, and counts in the manifest agree with what is stored."""
    assert sorted(row["request_id"] for row in mixed.rows) == sorted(f"good-{index}" for index in range(len(BAD_ROWS)))
    assert mixed.manifest.rows_in == 2 * len(BAD_ROWS)
    assert mixed.manifest.rows_valid == mixed.manifest.rows_rejected == len(BAD_ROWS) == len(mixed.rejects)


def test_messages_of_rejects_do_not_quote_prompts(mixed: Any) -> None:
    """Prompt text appears in no reject."""
    assert all("the quick fox" not in reject["message"] for reject in mixed.rejects)


def test_text_that_is_not_utf8_costs_its_row(tmp_path: Path, model: Path) -> None:
    """Parquet may hold bytes that are not text where text is promised."""
    broken = pa.array([b"the fox", b"\xff\xfe", b"ok"]).view(pa.string())

    done = ingest_columns(tmp_path, model, {"prompt": broken, "request_id": pa.array(["a", "b", "c"])})

    assert done.codes == {1: "wrong_type"}
    assert "UTF-8" in done.message(1)


def test_parameters_of_row_job_and_model_take_precedence_in_this_order(tmp_path: Path, model: Path) -> None:
    """Row over job over generation_config.json, parameter by parameter."""
    model = _with_generation_config(
        tmp_path, model, '{"temperature": 0.6, "top_k": 20, "top_p": 0.9, "max_new_tokens": 7}'
    )
    columns = {"prompt": ["fox", "dog"], "sampling_params": ['{"top_k": 3}', None], "max_tokens": [None, 5]}

    done = ingest_columns(tmp_path, model, columns, sampling_params={"top_p": 0.5, "top_k": 10})

    assert done.params(0) == {"temperature": 0.6, "top_k": 3, "top_p": 0.5, "max_tokens": 7}
    assert done.params(1) == {"temperature": 0.6, "top_k": 10, "top_p": 0.5, "max_tokens": 5}


def test_the_models_generation_config_can_be_left_out(tmp_path: Path, model: Path) -> None:
    """`generation_config: vllm` means neutral defaults, as in vLLM; max_tokens then is the documented default."""
    model = _with_generation_config(tmp_path, model, '{"temperature": 0.6}')

    done = ingest_columns(tmp_path, model, {"prompt": ["fox"]}, generation_config="vllm")

    assert done.params(0) == {"max_tokens": DEFAULT_MAX_TOKENS}


def test_sampling_params_may_be_a_struct(tmp_path: Path, model: Path) -> None:
    """A struct column works like JSON; its null fields are not given."""
    structs = [{"temperature": 0.5, "stop": ["x"]}, {"temperature": None, "stop": None}]

    done = ingest_columns(tmp_path, model, {"prompt": ["fox", "dog"], "sampling_params": structs}, max_tokens=4)

    assert done.params(0) == {"temperature": 0.5, "stop": ["x"], "max_tokens": 4}
    assert done.params(1) == {"max_tokens": 4}


def test_n_and_seed_stand_beside_the_parameters(tmp_path: Path, model: Path) -> None:
    """`n` and `seed` are columns of the chunk; a row's own seed is kept."""
    columns = {"prompt": ["fox", "dog"], "sampling_params": ['{"n": 3, "seed": 11}', None]}

    done = ingest_columns(tmp_path, model, columns)

    assert (done.by_row[0]["n"], done.by_row[0]["seed"]) == (3, 11)
    assert done.by_row[1]["n"] == 1
    assert set(done.params(0)) == {"max_tokens"}


def test_seeds_differ_by_row_and_repeat_with_the_jobs_seed(tmp_path: Path, model: Path) -> None:
    """Every row gets a seed from the job's seed and its own place: the same again for a rerun with the same seed."""
    columns = {"prompt": ["fox"] * 50}

    first = ingest_columns(tmp_path, model, columns, seed=1)
    again = ingest_columns(tmp_path, model, columns, seed=1, rerun="second")
    other = ingest_columns(tmp_path, model, columns, seed=2)

    seeds = [[done.by_row[row]["seed"] for row in range(50)] for done in (first, again, other)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0]) | set(seeds[2])) == 100


def test_the_tokens_of_a_foreign_tokenizer_beyond_the_models_vocabulary_are_rejected(
    tmp_path: Path, model: Path
) -> None:
    """A token without an embedding would end the engine, so its row never reaches one."""
    small = tmp_path / "small-vocabulary"
    small.mkdir()
    for file in model.iterdir():
        (small / file.name).write_bytes(file.read_bytes())
    config = (small / "config.json").read_text().replace('"vocab_size": 512', '"vocab_size": 300')
    (small / "config.json").write_text(config)

    done = ingest_columns(tmp_path, small, {"prompt": ["the quick brown fox", "!?"]})

    assert done.codes == {0: "bad_token_ids"}
    assert "knows only 300 tokens" in done.message(0)


def test_unusual_but_sound_column_types_are_read(tmp_path: Path, model: Path, tokenizer: Any) -> None:
    """Large strings, bytes, dictionaries, fixed-size lists and 32-bit floats are what other writers make of our
    columns."""
    ids = pa.array(["a", "b"]).dictionary_encode()
    columns = {
        "request_id": ids,
        "prompt": pa.array([b"the fox", None]),
        "prompt_token_ids": pa.array([None, [4, 5]], pa.list_(pa.uint16(), 2)),
        "max_tokens": pa.array([3.0, float("nan")], pa.float32()),
        "note": pa.array(["x", "y"], pa.large_string()),
    }

    done = ingest_columns(tmp_path, model, columns)

    assert done.rejects == []
    assert done.by_row[0]["prompt_token_ids"] == tokenizer.encode("the fox")
    assert done.by_row[1]["prompt_token_ids"] == [4, 5]
    assert (done.params(0)["max_tokens"], done.params(1)["max_tokens"]) == (3, DEFAULT_MAX_TOKENS)


def test_column_names_may_hold_anything(tmp_path: Path, model: Path, tokenizer: Any) -> None:
    """Dots, spaces and braces' contents in names are only names; a struct beside a dotted name is not confused with
    it."""
    columns = {"my.text": ["the fox"], "my": [{"text": "no", "x": 1}], "größe (cm)": [1.5], "": ["nameless"]}

    done = ingest_columns(tmp_path, model, columns, prompt_template="{my.text}: {größe (cm)}")

    assert tokenizer.decode(done.rows[0]["prompt_token_ids"], skip_special_tokens=True) == "the fox: 1.5"
    assert done.rows[0]["carried"] == {name: values[0] for name, values in columns.items()}


def test_a_damaged_page_ends_the_ingest_with_a_clear_error(tmp_path: Path, model: Path) -> None:
    """A file whose footer is sound and whose data is not cannot be read in part; nothing is made up for it."""
    path = tmp_path / "damaged.parquet"
    pq.write_table(pa.table({"prompt": [f"prompt number {row}" for row in range(500)]}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[40:400] = b"\xff" * 360
    path.write_bytes(content)

    with pytest.raises(InvalidInput, match=r"damaged.parquet.*cannot be decoded"):
        ingest_files(path, model)


def _with_generation_config(folder: Path, model: Path, text: str) -> Path:
    copy = folder / "with-generation-config"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "generation_config.json").write_text(text)
    return copy
