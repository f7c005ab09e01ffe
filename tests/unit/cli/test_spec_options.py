"""From words on the command line to settings, and what may be logged."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from shuntserve import telemetry
from shuntserve.cli.spec_options import merged, parse_json, parse_pairs, parse_values, read_spec_file
from shuntserve.errors import InvalidInput


def test_values_that_are_json_are_taken_as_such() -> None:
    """Numbers, flags and lists keep their type; anything else is text; only the first `=` separates."""
    values = parse_values("--param", ["top_k=5", "ignore_eos=true", 'stop=["a"]', "dtype=float32", "x=a=b"])

    assert values == {"top_k": 5, "ignore_eos": True, "stop": ["a"], "dtype": "float32", "x": "a=b"}


@pytest.mark.parametrize("pair", ["novalue", "=value", " =value"])
def test_a_pair_without_a_name_or_value_is_refused(pair: str) -> None:
    """The message shows how it is written."""
    with pytest.raises(InvalidInput, match="NAME=VALUE"):
        parse_pairs("--engine", [pair])


def test_json_may_come_from_a_file(tmp_path: Path) -> None:
    """`@file` stands for the file's content."""
    (tmp_path / "format.json").write_text('{"type": "json_object"}')

    assert parse_json("--response-format", f"@{tmp_path / 'format.json'}") == {"type": "json_object"}
    with pytest.raises(InvalidInput, match="No such file"):
        parse_json("--response-format", "@missing.json")


def test_the_command_line_stands_over_the_file() -> None:
    """Tables are merged name by name, single settings replaced, and what is not given changes nothing."""
    file = {"model": "a", "engine": {"dtype": "half", "max_num_seqs": 4}, "seed": 1}

    whole = merged(file, {"model": "b", "engine": {"dtype": "float32"}, "columns": {}, "name": None})

    assert whole == {"model": "b", "engine": {"dtype": "float32", "max_num_seqs": 4}, "seed": 1}


def test_paths_in_a_spec_file_are_relative_to_it(tmp_path: Path) -> None:
    """`job.yaml` can be used from any directory; URLs stay as they are."""
    (tmp_path / "job.yaml").write_text("input: [rows.parquet, s3://b/x]\noutput: out\nmodel: org/name\n")

    settings = read_spec_file(tmp_path / "job.yaml")

    assert settings == {
        "input": [str(tmp_path / "rows.parquet"), "s3://b/x"],
        "output": str(tmp_path / "out"),
        "model": "org/name",
    }


def test_events_are_lines_of_json() -> None:
    """One object a line: time, level, event, fields."""
    stream = io.StringIO()
    telemetry.log_to(stream, "info")

    telemetry.emit(telemetry.Event.CHUNK_COMMITTED, chunk="00000001", won=True)

    line = json.loads(stream.getvalue())
    assert (line["event"], line["chunk"], line["won"], line["level"]) == ("chunk_committed", "00000001", True, "info")
    assert line["time"].endswith("+00:00")


@pytest.mark.parametrize("field", sorted(telemetry.FORBIDDEN_FIELDS))
def test_fields_that_could_hold_text_are_refused(field: str) -> None:
    """Prompts and outputs never reach a log, not even by mistake."""
    with pytest.raises(ValueError, match=field):
        telemetry.emit(telemetry.Event.CHUNK_COMMITTED, **{field: "secret"})
