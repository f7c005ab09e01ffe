"""The drop folder over real buckets: each submission becomes exactly one job, whoever looks, however often, and
wherever they are cut off."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from shuntserve.errors import InvalidInput, NotFound
from shuntserve.job.inbox import Record, Scan, load_record, mark_told, scan, submit_taken
from shuntserve.job.submission import load_job
from shuntserve.store.faults import NO_FAULT, Fault, FaultyBucket
from shuntserve.store.port import Bucket
from shuntserve.store.verbs import Call, Verb
from tests.unit.inbox.conftest import DropFolder


def look(folder: DropFolder, quiet_s: float = 0.0, **more: object) -> Scan:
    """A look whose warnings were told."""
    found = scan(folder.bucket, defaults=folder.defaults, quiet_s=quiet_s, **more)  # type: ignore[arg-type]
    mark_told(folder.bucket, found)
    return found


def make(folder: DropFolder, record: Record) -> str:
    return submit_taken(folder.bucket, record.submission, record.number)


def paths(record: Record) -> list[str]:
    return [file.path for file in record.files]


def test_files_that_arrive_one_by_one_become_one_job(folder: DropFolder) -> None:
    """While files keep coming nothing is started; after the quiet time one job has them all, and stays the only one."""
    for index in range(5):
        folder.drop(f"upload/part-{index}.parquet")
        during = look(folder, quiet_s=3600)
        assert during.start == ()
        assert [one.submission for one in during.waiting] == ["upload"]

    taken = look(folder)
    again = look(folder)
    job_id = make(folder, taken.start[0])
    after = look(folder)

    assert paths(taken.start[0]) == [f"upload/part-{index}.parquet" for index in range(5)]
    assert again.start == taken.start
    assert (after.start, after.warned, after.known) == ((), (), 1)
    assert folder.jobs() == [job_id]
    assert job_id.startswith("upload-")
    assert sum(file.rows for file in load_job(folder.bucket, job_id).inputs) == 15


def test_a_marker_starts_at_once_and_a_bare_file_is_a_submission(folder: DropFolder) -> None:
    """`_READY` needs no quiet time; a file directly in the inbox gives its job its name."""
    folder.drop("marked/x.parquet")
    folder.put("marked/_READY")
    folder.drop("bare.parquet", salt="bare")

    first = look(folder, quiet_s=3600)
    second = look(folder)

    assert [record.submission for record in first.start] == ["marked"]
    assert [record.submission for record in second.start] == ["bare.parquet", "marked"]
    assert make(folder, second.start[0]).startswith("bare-")


def test_two_looks_at_once_take_a_submission_once(folder: DropFolder) -> None:
    """Whoever is first writes the record; all others start the very same one."""
    folder.drop("a/x.parquet")

    with ThreadPoolExecutor(4) as pool:
        records = [found.start[0] for found in pool.map(lambda _: look(folder), range(8))]
    with ThreadPoolExecutor(4) as pool:
        jobs = set(pool.map(lambda record: make(folder, record), records))

    assert len({record.key for record in records}) == 1
    assert len(jobs) == 1
    assert folder.jobs() == sorted(jobs)


def test_late_and_changed_files_warn_once_and_never_make_a_second_job(folder: DropFolder) -> None:
    """The job keeps the files it was made of; each new state of the folder is told of exactly once."""
    folder.drop("a/x.parquet")
    job_id = make(folder, look(folder).start[0])
    folder.drop("a/late.parquet")
    folder.drop("a/x.parquet", rows=9)

    waiting = look(folder, quiet_s=3600)
    warned = look(folder)
    quiet = look(folder)

    assert waiting.warned == ()
    assert [(one.submission, one.job_id) for one in warned.warned] == [("a", job_id)]
    assert (warned.warned[0].changes.late, warned.warned[0].changes.changed) == (("a/late.parquet",), ("a/x.parquet",))
    assert warned.start == quiet.start == quiet.warned == ()
    assert folder.jobs() == [job_id]


def test_warnings_are_repeated_until_somebody_was_told(folder: DropFolder) -> None:
    """A look that is cut off before it could say what it saw loses no warning."""
    folder.drop("a/x.parquet")
    make(folder, look(folder).start[0])
    folder.drop("a/late.parquet")
    folder.put("bad/_READY")

    cut_off = scan(folder.bucket, defaults=folder.defaults, quiet_s=0)
    told, after = look(folder), look(folder)

    assert [one.submission for one in cut_off.warned] == [one.submission for one in told.warned] == ["a"]
    assert [one.submission for one in cut_off.refused] == [one.submission for one in told.refused] == ["bad"]
    assert after.warned == after.refused == ()


def test_settings_that_change_afterwards_are_warned_of(folder: DropFolder) -> None:
    """An edit of job.yaml without `rerun` does not silently do nothing."""
    folder.drop("a/x.parquet")
    folder.put("a/job.yaml", b"max_tokens: 5")
    make(folder, look(folder).start[0])
    folder.put("a/job.yaml", b"max_tokens: 6000")

    found = look(folder)

    assert found.start == ()
    assert found.warned[0].changes.changed == ("a/job.yaml",)


def test_the_same_content_in_another_folder_is_the_same_job(folder: DropFolder) -> None:
    """A submission is its content and settings: uploaded again under another name it costs nothing more. With other
    settings it is another job."""
    folder.drop("monday/x.parquet")
    folder.drop("tuesday/x.parquet")
    folder.drop("wednesday/x.parquet")
    folder.put("wednesday/job.yaml", b"max_tokens: 7")

    jobs = {record.submission: make(folder, record) for record in look(folder).start}

    assert jobs["monday"] == jobs["tuesday"] != jobs["wednesday"]
    assert folder.jobs() == sorted({jobs["monday"], jobs["wednesday"]})


def test_a_rerun_is_another_job_once_for_each_text(folder: DropFolder) -> None:
    """Asked for by parameter or in job.yaml; the same text again is the same rerun."""
    folder.drop("a/x.parquet")
    jobs = [make(folder, look(folder).start[0])]

    by_parameter = look(folder, rerun={"a": "one"}).start[0]
    jobs.append(make(folder, by_parameter))
    again = look(folder, rerun={"a": "one"})
    folder.put("a/job.yaml", b"rerun: monday")
    jobs.append(make(folder, look(folder).start[0]))
    after = look(folder)
    folder.put("a/job.yaml", b"rerun: monday # same text, other file")
    edited = look(folder)

    assert again.start == after.start == edited.start == ()
    assert len(set(jobs)) == 3
    assert folder.jobs() == sorted(jobs)


def test_a_rerun_of_what_is_not_there_is_an_error(folder: DropFolder) -> None:
    """A misspelt name is told."""
    folder.drop("a/x.parquet")

    with pytest.raises(NotFound, match="submission b"):
        look(folder, rerun={"b": "one"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (b"model: [", "is not YAML"),
        (b"- a list", "does not hold settings"),
        (b"max_tokenz: 5", "max_tokens"),
        (b"max_tokens: many", "max_tokens"),
        (b"deadline: 2030-01-01T00:00:00", "time zone"),
        (b"seed: .nan", "seed"),
    ],
)
def test_a_submission_with_bad_settings_is_refused_until_it_changes(
    folder: DropFolder, settings: bytes, words: str
) -> None:
    """The reason is told once and kept beside the record; the neighbour is not held up; corrected, it is taken."""
    folder.drop("bad/x.parquet")
    folder.put("bad/job.yaml", settings)
    folder.drop("good/x.parquet", salt="good")

    first, second = look(folder), look(folder)
    folder.put("bad/job.yaml", b"max_tokens: 5")
    corrected = look(folder)

    assert [one.submission for one in first.refused] == ["bad"]
    assert words in first.refused[0].reason
    assert [record.submission for record in first.start] == ["good"]
    assert second.refused == ()
    assert [record.submission for record in corrected.start] == ["bad", "good"]


def test_a_submission_without_rows_is_refused(folder: DropFolder) -> None:
    """A marker or settings alone are nothing to run."""
    folder.put("empty/_READY")

    assert "no files with rows" in look(folder).refused[0].reason


def test_rows_that_cannot_be_a_job_are_refused_until_they_change(folder: DropFolder) -> None:
    """What only reading shows (a broken file) is refused by the one who makes the job; uploaded anew it is taken again,
    as the next record."""
    folder.put("a/x.parquet", b"this is not Parquet")
    record = look(folder).start[0]

    with pytest.raises(InvalidInput, match="not a Parquet file"):
        make(folder, record)
    refused = look(folder)
    folder.drop("a/x.parquet")
    retried = look(folder).start[0]

    assert refused.start == ()
    assert retried.number == 1
    assert make(folder, retried) == folder.jobs()[0]


def test_files_that_change_between_taking_and_submitting_are_not_mixed(folder: DropFolder) -> None:
    """A job is made of exactly the files in its record, or not at all; the changed upload is taken anew."""
    folder.drop("a/x.parquet")
    record = look(folder).start[0]
    folder.drop("a/x.parquet", rows=8)

    with pytest.raises(InvalidInput, match="changed after the submission was taken"):
        make(folder, record)
    retried = look(folder).start[0]

    assert load_record(folder.bucket, "a", 0) == record
    assert sum(file.rows for file in load_job(folder.bucket, make(folder, retried)).inputs) == 8


class Dies(Exception):
    """The process is gone."""


def dying_at(bucket: Bucket, request: int) -> Bucket:
    """`bucket` in a process that is killed when it sends this request."""
    left = [request]

    def plan(call: Call) -> Fault:
        left[0] -= 1
        if left[0] < 0:
            raise Dies
        return NO_FAULT

    return FaultyBucket(bucket, plan)


def test_cut_off_anywhere_and_repeated_it_is_one_job(folder: DropFolder) -> None:
    """A look and the making of its job are killed at every request they send, one after another, each time repeated:
    in the end there is one record and one job."""
    folder.drop("a/x.parquet")
    folder.drop("a/y.parquet")
    request, survived = 0, False
    while not survived:
        dying = DropFolder(dying_at(folder.bucket, request), folder.defaults)
        try:
            for record in look(dying).start:
                make(dying, record)
            survived = not look(dying).start
        except Dies:
            request += 1

    assert request > 8
    assert len(folder.jobs()) == 1
    records = [info.key for info in folder.bucket.list("submissions/a") if info.key.endswith("record.json")]
    assert records == ["submissions/a/0000/record.json"]


def test_what_a_user_put_is_only_read(folder: DropFolder) -> None:
    """The inbox is the user's: no look and no job writes or deletes there."""
    folder.drop("a/x.parquet")
    folder.put("a/job.yaml", b"max_tokens: [")
    touched: list[Call] = []

    def plan(call: Call) -> Fault:
        if call.verb in (Verb.PUT, Verb.CREATE, Verb.DELETE) and call.key.startswith("inbox/"):
            touched.append(call)
        return NO_FAULT

    watched = DropFolder(FaultyBucket(folder.bucket, plan), folder.defaults)
    look(watched)
    folder.put("a/job.yaml", b"max_tokens: 5")
    make(watched, look(watched).start[0])

    assert touched == []
