"""Reading a drop folder's listing: pure decisions about uploads, their completeness and what changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve.core.inbox import (
    Completeness,
    File,
    Past,
    Step,
    Upload,
    changes,
    completeness,
    job_settings,
    next_step,
    read_listing,
    rerun_salt,
)
from shuntserve.errors import InvalidInput


def file(path: str, at: float | None = 0.0, etag: str = "a", size: int = 1) -> File:
    return File(path, size, etag, at)


def upload(*files: File) -> Upload:
    return Upload(files[0].path.partition("/")[0], files)


COMPLETE = Completeness(True, "")
INCOMPLETE = Completeness(False, "")


def test_directories_and_bare_row_files_are_submissions() -> None:
    """Each directory and each Parquet or JSONL file at the top is one; other files there are strays; hidden names are
    nobody's."""
    listing = read_listing(
        file(path)
        for path in (
            "a/part-0.parquet",
            "a/deep/part-1.parquet",
            "a/_READY",
            "b.parquet",
            "c.jsonl",
            "notes.txt",
            ".x/y.parquet",
            "_z/y.parquet",
        )
    )

    assert [(one.name, one.job_name, len(one.files)) for one in listing.uploads] == [
        ("a", "a", 3),
        ("b.parquet", "b", 1),
        ("c.jsonl", "c", 1),
    ]
    assert listing.strays == ("notes.txt",)


def test_a_directory_named_like_a_file_keeps_its_name() -> None:
    """`b.parquet/` as Spark writes it is a directory: its job has the whole name, and it is no bare file."""
    listing = read_listing([file("b.parquet/part-0.parquet")])

    assert listing.uploads[0].job_name == "b.parquet"


def test_markers_settings_and_hidden_files_hold_no_rows() -> None:
    """What readers leave out is not part of the input."""
    one = upload(*(file(f"a/{name}") for name in ("_READY", "job.yaml", ".crc", "_temporary/0.parquet", "x.parquet")))

    assert [row.path for row in one.rows] == ["a/x.parquet"]


@pytest.mark.parametrize("marker", ["_READY", "_SUCCESS", "job.yaml", "job.yml"])
def test_a_marker_that_came_last_completes_at_once(marker: str) -> None:
    """No quiet minute is needed when nothing is newer than the marker, the same second included."""
    one = upload(file("a/x.parquet", at=100), file(f"a/{marker}", at=100))

    assert completeness(one, now_unix_s=100.0).complete


def test_files_after_the_marker_need_the_quiet_minute() -> None:
    """Whoever uploads a directory in any order is not cut off by a marker that was not the last file."""
    one = upload(file("a/job.yaml", at=100), file("a/x.parquet", at=101))

    assert not completeness(one, now_unix_s=160.9).complete
    assert completeness(one, now_unix_s=161.0).complete


def test_a_marker_below_the_top_completes_nothing() -> None:
    """`_SUCCESS` of a part is not the submission's."""
    one = upload(file("a/part/x.parquet", at=100), file("a/part/_SUCCESS", at=101))

    assert not completeness(one, now_unix_s=102.0).complete


def test_a_bucket_without_times_needs_a_marker() -> None:
    """Where ages are unknown nothing is guessed from them."""
    bare = upload(file("a/x.parquet", at=None))
    marked = upload(file("a/x.parquet", at=None), file("a/_READY", at=None))

    assert not completeness(bare, now_unix_s=1e9).complete
    assert not completeness(bare, now_unix_s=None).complete
    assert completeness(marked, now_unix_s=None).complete


def test_a_marker_alone_is_judged_after_the_quiet_minute() -> None:
    """A marker whose rows are still on their way waits; when nothing follows it is taken for what it is: empty."""
    one = upload(file("a/_READY", at=100))

    assert not completeness(one, now_unix_s=130.0).complete
    assert completeness(one, now_unix_s=160.0).complete


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.floats(0, 2e6), st.floats(0.1, 1000))
def test_no_upload_is_complete_while_a_file_is_younger_than_quiet(
    times: list[float], now: float, quiet_s: float
) -> None:
    """Whatever the order of files: without a marker, complete means that the newest is at least `quiet_s` old."""
    one = Upload("a", tuple(file(f"a/{index}.parquet", at=at) for index, at in enumerate(times)))

    judged = completeness(one, now, quiet_s)

    assert judged.complete == (quiet_s - (now - max(times)) <= 0)
    assert judged.complete or (judged.quiet_in_s or 0) > 0


def test_changes_name_what_is_late_changed_and_gone() -> None:
    """Against the files that were taken; size or etag tell a change, times do not."""
    taken = [file("a/0.parquet"), file("a/1.parquet"), file("a/2.parquet"), file("a/3.parquet")]
    now = upload(
        file("a/0.parquet", at=99),
        file("a/1.parquet", etag="b"),
        file("a/2.parquet", size=2),
        file("a/9.parquet"),
    )

    found = changes(taken, now)

    assert (found.late, found.changed, found.gone) == (
        ("a/9.parquet",),
        ("a/1.parquet", "a/2.parquet"),
        ("a/3.parquet",),
    )
    assert str(found) == "came later: a/9.parquet; changed: a/1.parquet, a/2.parquet; gone: a/3.parquet"
    assert not changes(taken, upload(*taken))


def test_uploading_the_same_again_changes_no_fingerprint() -> None:
    """A second upload of the same bytes has other times and is the same submission; other settings are another."""
    first = upload(file("a/x.parquet", at=1), file("a/job.yaml", at=2))
    again = upload(file("a/x.parquet", at=100), file("a/job.yaml", at=200))
    edited = upload(file("a/x.parquet", at=1), file("a/job.yaml", at=2, etag="b"))

    assert first.fingerprint == again.fingerprint != edited.fingerprint


@pytest.mark.parametrize(
    ("past", "complete", "step"),
    [
        (Past(), False, Step.WAIT),
        (Past(), True, Step.TAKE),
        (Past(number=0), False, Step.CONTINUE),
        (Past(number=0), True, Step.CONTINUE),
        (Past(number=0, has_job=True), False, Step.WAIT),
        (Past(number=0, has_job=True), True, Step.COMPARE),
        (Past(number=0, refused=True), False, Step.WAIT),
        (Past(number=0, refused=True), True, Step.TAKE),
    ],
)
def test_next_step_by_past_and_completeness(past: Past, complete: bool, step: Step) -> None:
    """The whole table; and what has been dealt with needs nothing, except a job that is still to be made."""
    one = upload(file("a/x.parquet"))
    dealt = Past(past.number, past.has_job, past.refused, frozenset({one.fingerprint}))
    judged = COMPLETE if complete else INCOMPLETE

    assert next_step(past, one, judged) is step
    assert next_step(dealt, one, judged) is (Step.CONTINUE if step is Step.CONTINUE else Step.NOTHING)


def test_rerun_texts() -> None:
    """A text is one rerun, `true` one for each version of the file, nothing none."""
    assert rerun_salt({}, "1") is rerun_salt({"rerun": False}, "1") is None
    assert rerun_salt({"rerun": "monday"}, "1") == rerun_salt({"rerun": "monday"}, "2") == "monday"
    assert rerun_salt({"rerun": True}, "1") == rerun_salt({"rerun": True}, "1") != rerun_salt({"rerun": True}, "2")


def test_own_settings_stand_over_the_inbox_s_and_tables_are_merged() -> None:
    """What job.yaml says counts; of tables, name by name."""
    merged = job_settings(
        {"model": "m", "engine": {"dtype": "float32"}, "max_tokens": 5},
        {"max_tokens": 9, "engine": {"max_model_len": 512}, "rerun": "x"},
    )

    assert merged == {"model": "m", "engine": {"dtype": "float32", "max_model_len": 512}, "max_tokens": 9}


@pytest.mark.parametrize(("own", "allowed"), [({}, 10.0), ({"max_cost_usd": 5.0}, 5.0), ({"max_cost_usd": 50.0}, 10.0)])
def test_a_submission_may_lower_its_cost_cap_and_not_raise_it(own: dict[str, float], allowed: float) -> None:
    """Whoever may drop a file cannot spend more than the inbox allows."""
    assert job_settings({"max_cost_usd": 10.0}, own)["max_cost_usd"] == allowed


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"input": "elsewhere"}, "is the submission itself"),
        ({"output": "relative/dir"}, "whole path or URL"),
        ({"engine": {"trust_remote_code": True}}, "run code"),
    ],
)
def test_settings_a_submission_may_not_make(own: dict[str, object], words: str) -> None:
    """Each is refused with the reason."""
    with pytest.raises(InvalidInput, match=words):
        job_settings({}, own)
