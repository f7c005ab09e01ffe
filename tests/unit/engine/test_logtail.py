"""Finding the cause in an engine's log."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuntserve.engine.logtail import last_error, with_cause


def test_the_last_exception_line_is_the_cause(tmp_path: Path) -> None:
    """Prefixes of log lines are cut off; what the frontend says about its dead core is passed over."""
    log = tmp_path / "engine.log"
    log.write_text(
        "(EngineCore pid=7) ERROR 11-22 16:02:47 [core.py:12] ValueError: an earlier one\n"
        "(EngineCore pid=7) ERROR 11-22 16:02:48 [core.py:12] torch.OutOfMemoryError: CUDA out of memory.\n"
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.\n"
        "some later chatter\n"
    )

    assert last_error(log) == "torch.OutOfMemoryError: CUDA out of memory."


def test_a_log_without_exceptions_has_no_cause(tmp_path: Path) -> None:
    """Prose about errors is not an exception; neither is a missing file."""
    log = tmp_path / "engine.log"
    log.write_text("there was an error: yes\nINFO all is well\n")

    assert last_error(log) is None
    assert last_error(tmp_path / "absent.log") is None


def test_only_the_tail_is_read_and_the_cause_is_short(tmp_path: Path) -> None:
    """A large log costs no more than its tail, and a long message is cut."""
    log = tmp_path / "engine.log"
    log.write_text("KeyError: far away\n" + "x" * 70_000 + "\nValueError: " + "y" * 5_000 + "\n")

    cause = last_error(log)

    assert cause is not None
    assert cause.startswith("ValueError: yyy")
    assert len(cause) == 500
    assert cause.endswith("…")


@pytest.mark.parametrize(
    ("detail", "explained"),
    [
        ("engine core exited with status 1", "engine core exited with status 1: ValueError: no such layer"),
        ("torch.ValueError: no such layer", "torch.ValueError: no such layer"),
        ("RuntimeError: Engine core initialization failed. See root cause above.", "ValueError: no such layer"),
    ],
)
def test_the_cause_is_said_once_and_takes_the_place_of_a_mere_symptom(
    tmp_path: Path, detail: str, explained: str
) -> None:
    """What an engine said and what its log holds become one line without repetition."""
    log = tmp_path / "engine.log"
    log.write_text("(EngineCore pid=7) ValueError: no such layer\n")

    assert with_cause(detail, log) == explained
    assert with_cause(detail, tmp_path / "absent.log") == detail
