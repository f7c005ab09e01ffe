"""OpenAI batch files: what each line becomes, and which lines are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shuntserve.core.resolved import InputKind
from tests.support.ingesting import chat_line, completion_line, ingest_lines


def test_chat_and_completion_lines_get_the_tokens_vllm_would_give_them(
    tmp_path: Path, model: Path, tokenizer: Any
) -> None:
    """Chats go through the chat template, prompts get BOS, token ids are taken as they are."""
    lines = [
        chat_line("chat", "the fox"),
        completion_line("text", "the fox"),
        completion_line("one in a list", ["the fox"]),
        completion_line("ids", [4, 5, 6]),
        completion_line("ids in a list", [[7, 8]]),
        completion_line("bare", "the fox", add_special_tokens=False),
    ]

    done = ingest_lines(tmp_path, model, lines)

    tokens = {row["request_id"]: row["prompt_token_ids"] for row in done.rows}
    messages = [{"role": "user", "content": "the fox"}]
    assert tokens == {
        "chat": tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False),
        "text": tokenizer.encode("the fox"),
        "one in a list": tokenizer.encode("the fox"),
        "ids": [4, 5, 6],
        "ids in a list": [7, 8],
        "bare": tokenizer.encode("the fox", add_special_tokens=False),
    }


def test_what_the_answer_in_kind_needs_is_carried(tmp_path: Path, model: Path) -> None:
    """custom_id is the request id; url and the line's model come along; logprobs are returned, since a line may ask."""
    done = ingest_lines(tmp_path, model, [chat_line("a")])

    assert done.rows[0]["request_id"] == "a"
    assert done.rows[0]["carried"] == {"url": "/v1/chat/completions", "model": "m"}
    assert done.job.input_kind is InputKind.OPENAI_JSONL
    assert done.job.return_logprobs


def test_row_numbers_are_line_numbers_and_blank_lines_are_no_rows(tmp_path: Path, model: Path) -> None:
    """The third line has number 2 also when the second is blank, and the blank one is neither row nor reject."""
    done = ingest_lines(tmp_path, model, [chat_line("a"), "", chat_line("b")])

    assert [row["source_row"] for row in done.rows] == [0, 2]
    assert done.manifest.rows_in == 2


@pytest.mark.parametrize(
    ("body", "params"),
    [
        ({"max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"max_tokens": 9, "max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"max_tokens": 9, "temperature": None}, {"max_tokens": 9}),
        ({"max_tokens": 9, "logprobs": True, "top_logprobs": 3}, {"max_tokens": 9, "logprobs": 3}),
        ({"max_tokens": 9, "logprobs": True}, {"max_tokens": 9, "logprobs": 0}),
        ({"max_tokens": 9, "logprobs": False}, {"max_tokens": 9}),
        ({"max_tokens": 9, "stop": "x"}, {"max_tokens": 9, "stop": ["x"]}),
        ({"max_tokens": 9, "logit_bias": {"5": 1}}, {"max_tokens": 9, "logit_bias": {"5": 1.0}}),
        ({"max_tokens": 9, "top_k": 5, "min_p": 0.1}, {"max_tokens": 9, "top_k": 5, "min_p": 0.1}),
        (
            {"max_tokens": 9, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}},
            {"max_tokens": 9, "structured_outputs": {"json": {}}},
        ),
        (
            {"max_tokens": 9, "response_format": {"type": "json_object"}},
            {"max_tokens": 9, "structured_outputs": {"json_object": True}},
        ),
        ({"max_tokens": 9, "response_format": {"type": "text"}}, {"max_tokens": 9}),
        ({"max_tokens": 9, "user": "u", "metadata": {"a": "b"}, "stream": False, "tools": []}, {"max_tokens": 9}),
    ],
)
def test_openai_names_become_vllms(tmp_path: Path, model: Path, body: dict[str, Any], params: dict[str, Any]) -> None:
    """Each OpenAI parameter arrives under vLLM's name; what changes nothing is accepted and dropped."""
    done = ingest_lines(tmp_path, model, [chat_line("a", **body)])

    assert done.rejects == []
    assert done.params(0) == params


def test_seed_and_n_of_a_line_count(tmp_path: Path, model: Path) -> None:
    """They stand in columns of their own."""
    done = ingest_lines(tmp_path, model, [chat_line("a", seed=5, n=2)])

    assert (done.rows[0]["seed"], done.rows[0]["n"]) == (5, 2)


def test_a_lines_template_variables_stand_over_the_jobs(tmp_path: Path, model: Path, tokenizer: Any) -> None:
    """`chat_template_kwargs` in a body are for that line alone."""
    lines = [chat_line("off", chat_template_kwargs={"enable_thinking": False}), chat_line("on")]

    done = ingest_lines(tmp_path, model, lines)

    texts = {row["request_id"]: tokenizer.decode(row["prompt_token_ids"]) for row in done.rows}
    assert "[no thinking]" in texts["off"]
    assert "[no thinking]" not in texts["on"]


BAD_LINES: list[tuple[Any, str, str]] = [
    ("{broken", "wrong_type", "not a JSON object"),
    ("[1, 2]", "wrong_type", "not a JSON object"),
    ({**chat_line("x"), "custom_id": None}, "null_id", "custom_id is missing"),
    ({**chat_line("x"), "custom_id": ""}, "null_id", "custom_id is missing"),
    ({**chat_line("x"), "custom_id": 7}, "wrong_type", "custom_id must be a string"),
    (chat_line("good-0"), "duplicate_id", "earlier line"),
    ({**chat_line("b1"), "method": "GET"}, "bad_parameter", "POST"),
    ({**chat_line("b2"), "url": "/v1/embeddings"}, "bad_parameter", "not answered"),
    ({**chat_line("b3"), "url": "/v1/chat/completion"}, "bad_parameter", "'/v1/chat/completions'"),
    ({**chat_line("b4"), "body": "text"}, "wrong_type", "body must be an object"),
    ({**chat_line("b5"), "boddy": {}}, "unknown_parameter", "'body'"),
    (chat_line("b6", max_completion_token=3), "unknown_parameter", "'max_completion_tokens'"),
    (chat_line("b7", temprature=1), "unknown_parameter", "'temperature'"),
    (chat_line("b8", tools=[{"type": "function"}]), "unsupported_parameter", "tool calls"),
    (chat_line("b9", stream=True), "unsupported_parameter", "stream"),
    (chat_line("c1", top_logprobs=3), "bad_parameter", "logprobs: true"),
    (chat_line("c2", logprobs=True, top_logprobs=21), "bad_parameter", "from 0 to 20"),
    (chat_line("c3", max_tokens=1, max_completion_tokens=2), "bad_parameter", "differ"),
    (chat_line("c4", messages=[]), "empty_prompt", "messages are empty"),
    (chat_line("c5", messages=None), "no_prompt", "no messages"),
    (chat_line("c6", messages=[{"role": "robot", "content": ""}]), "template_error", "robot"),
    (chat_line("c7", response_format={"type": "json"}), "bad_parameter", "json_object, json_schema, text"),
    (chat_line("c8", text="the fox " * 200), "prompt_too_long", "context of 256"),
    (completion_line("d1", ""), "empty_prompt", "empty"),
    (completion_line("d2", None), "no_prompt", "no prompt"),
    (completion_line("d3", ["a", "b"]), "unsupported_parameter", "one line for each"),
    (completion_line("d4", {"a": 1}), "wrong_type", "text or a list of token ids"),
    (completion_line("d5", [512]), "bad_token_ids", "from 0 to 511"),
    (completion_line("d6", echo=True), "unsupported_parameter", "echo"),
    (completion_line("d7", best_of=4), "unsupported_parameter", "best_of"),
    (completion_line("d8", messages=[]), "unknown_parameter", "messages"),
    (chat_line("e1", chat_template_kwargs={"tokenize": True}), "bad_parameter", "cannot set"),
    ('{"custom_id": "e2", "url": "/v1/completions", "body": {"prompt": "\\ud800"}}', "wrong_type", "JSON"),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Any:
    """One file in which good and bad lines take turns."""
    lines = [line for index, (bad, *_) in enumerate(BAD_LINES) for line in (chat_line(f"good-{index}"), bad)]
    return ingest_lines(tmp_path_factory.mktemp("mixed"), model, lines)


@pytest.mark.parametrize("index", range(len(BAD_LINES)))
def test_a_bad_line_costs_itself_and_says_why(mixed: Any, index: int) -> None:
    """Each kind of bad line is rejected with its code, a message that helps, and its custom_id where it has one."""
    line, code, message = BAD_LINES[index]

    reject = next(reject for reject in mixed.rejects if reject["source_row"] == 2 * index + 1)

    assert reject["code"] == code
    assert message in reject["message"]
    if isinstance(line, dict) and isinstance(line["custom_id"], str):
        assert reject["request_id"] == (line["custom_id"] or None)


def test_every_good_line_survives_its_bad_neighbours(mixed: Any) -> None:
    """Rejects are exactly the planted lines."""
    assert sorted(row["request_id"] for row in mixed.rows) == sorted(f"good-{index}" for index in range(len(BAD_LINES)))
    assert len(mixed.rejects) == len(BAD_LINES)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path, model: Path) -> None:
    """Windows programs put one before the first line."""
    done = ingest_lines(tmp_path, model, ["\ufeff" + json.dumps(chat_line("a")), chat_line("b")])

    assert [row["request_id"] for row in done.rows] == ["a", "b"]


def test_a_file_is_known_by_any_of_its_first_lines(tmp_path: Path, model: Path) -> None:
    """A broken first line, or one longer than what is looked at, does not hide the others."""
    broken_first = ingest_lines(tmp_path, model, ["[]", chat_line("a")])
    long_first = ingest_lines(tmp_path, model, [chat_line("a", "x" * 2_000_000), chat_line("b")])

    assert broken_first.codes == {0: "wrong_type"}
    assert long_first.codes == {0: "prompt_too_long"}
    assert [row["request_id"] for row in [*broken_first.rows, *long_first.rows]] == ["a", "b"]


def test_developer_messages_and_tool_history_reach_templates_that_do_not_know_them(
    tmp_path: Path, model: Path, tokenizer: Any
) -> None:
    """`developer` becomes the leading system message and several parts one text, as in vLLM."""
    messages = [
        {"role": "system", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "developer", "content": "two"},
    ]

    done = ingest_lines(tmp_path, model, [chat_line("a", messages=messages)])

    text = tokenizer.decode(done.rows[0]["prompt_token_ids"])
    assert text == "[system] one\n\ntwo\n[user] a\nb\n[assistant] "
