"""Lengths of requests: moments that the steady state needs, and files that carry them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput, NotFound
from shuntserve.workload_file import read_workload


def test_long_outputs_weigh_more_in_what_is_resident() -> None:
    """A request of 300 output tokens is resident three times as long as one of 100: its context counts thrice."""
    load = Workload.of([(100, 100), (500, 300)])

    assert load.mean_input == 300
    assert load.mean_output == 200
    assert load.mean_context == pytest.approx((150.5 * 100 + 650.5 * 300) / 400)
    assert load.mean_held == pytest.approx((200 * 100 + 800 * 300) / 400)
    assert load.output_cv == pytest.approx(0.5)


def test_equal_requests_have_no_spread() -> None:
    """763:232 stands for every request being so."""
    load = read_workload("763:232")

    assert (load.mean_input, load.mean_output, load.output_cv) == (763, 232, 0)


@pytest.mark.parametrize("text", ["0:5", "5:0", "-3:5", "nan:5", "5:inf", "5:", ":5", "a:b", "no/such/file.csv"])
def test_lengths_that_make_no_sense_are_refused(text: str) -> None:
    """Zero, negative, NaN, infinite, missing, not numbers, no file."""
    with pytest.raises(InvalidInput):
        read_workload(text)


@pytest.mark.parametrize(
    "header", ["ContextTokens,GeneratedTokens", "input_tokens,output_tokens", "prompt_tokens,completion_tokens"]
)
def test_a_csv_of_lengths_is_read_under_its_usual_names(tmp_path: Path, header: str) -> None:
    """The names of the Azure traces, plain ones, and those of a job's own output."""
    path = tmp_path / "lengths.csv"
    path.write_text(f"{header},other\n10,20,x\n30,40,y\n")

    load = read_workload(str(path))

    assert (load.input_tokens, load.output_tokens) == ((10, 30), (20, 40))


def test_a_parquet_of_results_is_a_workload(tmp_path: Path) -> None:
    """What a job wrote says what the next one like it will look like; a row without output counts as one token."""
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table({"prompt_tokens": [5, 6], "completion_tokens": [7, 0], "output_text": ["a", ""]}), path)

    assert read_workload(str(path)).output_tokens == (7, 1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b\n1,2\n", "columns"),
        ("input_tokens,output_tokens\n", "no rows"),
        ("input_tokens,output_tokens\n1,x\n", "row 1"),
    ],
)
def test_a_file_that_is_no_workload_is_refused(tmp_path: Path, content: str, says: str) -> None:
    """Other columns, no rows, not numbers: each named."""
    path = tmp_path / "lengths.csv"
    path.write_text(content)

    with pytest.raises(InvalidInput, match=says):
        read_workload(str(path))


def test_a_parquet_that_is_none_is_refused(tmp_path: Path) -> None:
    """The error is ours, not pyarrow's."""
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"not parquet at all")

    with pytest.raises(InvalidInput, match="no Parquet"):
        read_workload(str(path))


def test_requests_repeat_the_distribution_in_order() -> None:
    """More requests than lengths: the lengths come round again."""
    load = Workload.of([(1, 2), (3, 4)])

    assert list(load.requests(5)) == [(1, 2), (3, 4), (1, 2), (3, 4), (1, 2)]


def test_a_missing_file_is_not_found() -> None:
    """The class says that the thing does not exist."""
    with pytest.raises(NotFound):
        read_workload("lengths.csv")
