"""The output's place: never somebody else's, never anything of the user's deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuntserve.errors import Conflict, InvalidInput
from shuntserve.job.output_place import OutputPlace
from shuntserve.store.open import open_bucket


def reserve(path: Path, job: str = "mine", *, overwrite: bool = False) -> OutputPlace:
    place = OutputPlace(open_bucket(path))
    place.reserve(job, "memory://store", overwrite=overwrite)
    return place


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    """A directory without anything in it becomes the job's, and stays so for the same job."""
    reserve(tmp_path)

    assert reserve(tmp_path).owner() == "mine"


def test_another_jobs_place_is_refused(tmp_path: Path) -> None:
    """The output of one job is not written into by another, and the error says how to go on."""
    reserve(tmp_path, "theirs")

    with pytest.raises(InvalidInput, match="job theirs") as caught:
        reserve(tmp_path)

    assert "--overwrite" in caught.value.next_step


def test_a_directory_with_files_is_refused(tmp_path: Path) -> None:
    """Files of unknown origin are reason enough to stop; they are named."""
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(InvalidInput, match=r"notes\.txt"):
        reserve(tmp_path)


def test_overwrite_removes_the_other_jobs_parts_and_nothing_else(tmp_path: Path) -> None:
    """With --overwrite the old manifest and parts go, and the user's other files stay."""
    theirs = reserve(tmp_path, "theirs")
    theirs.put("data/part-000000.parquet", b"old")
    theirs.put("output.jsonl", b"old")
    theirs.publish({"job": "theirs"}, ["data/part-000000.parquet", "output.jsonl"])
    (tmp_path / "notes.txt").write_text("mine")

    mine = reserve(tmp_path, overwrite=True)

    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["_job.json", "notes.txt"]
    assert (mine.owner(), mine.manifest()) == ("mine", None)


def test_overwrite_deletes_no_strangers_among_the_parts(tmp_path: Path) -> None:
    """A file in `data` that ShuntServe did not write (perhaps the input itself) stops even --overwrite."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prompts.parquet").write_text("the user's input")

    with pytest.raises(InvalidInput, match=r"data/prompts\.parquet is not ShuntServe's"):
        reserve(tmp_path, overwrite=True)

    assert (tmp_path / "data/prompts.parquet").read_text() == "the user's input"


def test_a_foreign_marker_is_refused(tmp_path: Path) -> None:
    """A `_job.json` of some other program is not taken for ours."""
    (tmp_path / "_job.json").write_text("[]")

    with pytest.raises(InvalidInput, match="is not ShuntServe's"):
        reserve(tmp_path)


def test_two_jobs_at_once_cannot_share_a_place(tmp_path: Path) -> None:
    """When another job takes the place between our look and our write, we lose."""

    class Raced(OutputPlace):
        def owner(self) -> str | None:
            seen = super().owner()
            if seen is None:
                reserve(tmp_path, "theirs")
            return seen

    with pytest.raises(Conflict, match="job theirs"):
        Raced(open_bucket(tmp_path)).reserve("mine", "memory://store", overwrite=True)


def test_an_unwritable_place_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    """A file where the directory should be is noticed before any work is done."""
    (tmp_path / "out").write_text("a file")

    with pytest.raises(InvalidInput, match="not a directory"):
        reserve(tmp_path / "out")
