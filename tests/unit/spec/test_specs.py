"""JobSpec: mistakes in what a user writes are errors at birth, with the way out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from shuntserve.core.near_miss import did_you_mean, near_miss
from shuntserve.core.prompt_template import PromptTemplate
from shuntserve.core.specs import JobSpec, parse_deadline, parse_duration_s
from shuntserve.errors import InvalidInput


def spec(**settings: Any) -> JobSpec:
    return JobSpec(**{"input": "in.parquet", "model": "m", **settings})


def test_input_may_be_one_path_or_several() -> None:
    """Text and paths, alone or in a list."""
    assert spec(input=Path("a")).input == ("a",)
    assert spec(input=["a", Path("b")]).input == ("a", "b")


def test_a_spec_cannot_be_changed() -> None:
    """It is a value."""
    with pytest.raises(Exception, match="frozen"):
        spec().model = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"promt_template": "{x}"}, "did you mean 'prompt_template'"),
        ({"sampling": {}}, "did you mean 'sampling_params'"),
        ({"model": None}, "model"),
        ({"model": " "}, "model: is empty"),
        ({"input": []}, "input"),
        ({"input": ""}, "input: is empty"),
        ({"max_reject_fraction": 2}, "max_reject_fraction"),
        ({"checkpoint_interval_s": 0}, "checkpoint_interval_s"),
        ({"seed": -1}, "seed"),
        ({"columns": {"text": "prompt"}}, "our name first"),
        ({"columns": {"promt": "x"}}, "did you mean 'prompt'"),
        ({"prompt_template": "no column"}, "names no column"),
        ({"prompt_template": "{x!r}"}, "has a format"),
        ({"prompt_template": "{x"}, "cannot be read"),
        ({"prompt_template": "{x}", "columns": {"prompt": "y"}}, "keep one of them"),
        ({"max_tokens": 3, "sampling_params": {"max_tokens": 4}}, "differs"),
        ({"sampling_params": {"temprature": 1}}, "'temperature'"),
        ({"sampling_params": {"n": 2, "temperature": 0}}, "raise temperature"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs: regex"),
        ({"response_format": {"type": "x"}}, "response_format"),
        ({"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}}, "keep one of them"),
        ({"chat": False, "system": "s"}, "no effect"),
        ({"engine": {"tp": 2}}, "tensor_parallel_size"),
        ({"deadline": "soon"}, "cannot be read"),
        ({"deadline": datetime(2030, 1, 1)}, "time zone"),  # noqa: DTZ001  # the missing zone is the point
        ({"generation_config": "none"}, "generation_config"),
    ],
    ids=str,
)
def test_a_mistake_is_named_with_the_way_out(settings: dict[str, Any], message: str) -> None:
    """InvalidInput says which setting is wrong and what to do."""
    with pytest.raises(InvalidInput) as caught:
        spec(**settings)

    assert message in str(caught.value)
    assert caught.value.next_step


def test_a_missing_setting_is_named() -> None:
    """Without a model there is no job."""
    with pytest.raises(InvalidInput, match=r"'model'.*missing"):
        JobSpec(input="x")  # type: ignore[call-arg]


def test_specs_read_from_files_are_checked_the_same_way() -> None:
    """`model_validate`, which job.yaml goes through, raises the same errors."""
    with pytest.raises(InvalidInput, match="did you mean 'model'"):
        JobSpec.model_validate({"input": "x", "modle": "m"})


@pytest.mark.parametrize(
    ("settings", "chats"),
    [
        ({}, False),
        ({"system": "s"}, True),
        ({"chat_template_kwargs": {"a": 1}}, True),
        ({"chat_template": "{{ messages }}"}, True),
        ({"chat": True}, True),
    ],
    ids=str,
)
def test_prompts_are_chats_when_a_chat_setting_is_given(settings: dict[str, Any], chats: bool) -> None:
    """Plain prompts go to the model as they are unless something asks for the chat template."""
    assert spec(**settings).chats is chats


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("2h30m", 9000), ("1d", 86400), ("0.5h", 1800)]
)
def test_durations(text: str, seconds: float) -> None:
    """Days, hours, minutes and seconds in this order."""
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5x", "0m", "30m2h", "-5m"])
def test_what_is_no_duration(text: str) -> None:
    """Refused, with an example."""
    with pytest.raises(InvalidInput, match="duration"):
        parse_duration_s(text)


def test_a_deadline_is_a_moment_or_counts_from_submission() -> None:
    """Both come out as Unix time."""
    moment = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))

    assert parse_deadline("1h", 100.0) == 3700.0
    assert parse_deadline(moment, 100.0) == datetime(2030, 1, 1, 10, tzinfo=UTC).timestamp()
    assert parse_deadline("2030-01-01T10:00:00Z", 100.0) == datetime(2030, 1, 1, 10, tzinfo=UTC).timestamp()


def test_templates_keep_braces_and_odd_column_names() -> None:
    """Doubled braces are braces; a name is everything between two braces."""
    template = PromptTemplate.parse("{{a}} {my column}: {x.y}{z}")

    assert template == PromptTemplate(("{a} ", ": ", "", ""), ("my column", "x.y", "z"))


@pytest.mark.parametrize(
    ("name", "expected"), [("promt", "prompt"), ("PROMPT", "prompt"), ("max-tokens", "max_tokens"), ("zzz", None)]
)
def test_near_misses(name: str, expected: str | None) -> None:
    """Case and dashes are no difference; what is far from everything has no near miss."""
    assert near_miss(name, ["prompt", "max_tokens"]) == expected


def test_without_a_near_miss_all_names_are_listed() -> None:
    """So that the user can choose."""
    assert did_you_mean("zzz", ["b", "a"]) == "known names: a, b"
