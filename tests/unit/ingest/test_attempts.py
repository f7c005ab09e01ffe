"""Attempts: one counts, crashed ones and losers leave nothing that is read, and what is read is what was written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shuntserve.core.chunking import ChunkPolicy
from shuntserve.core.specs import JobSpec
from shuntserve.errors import Corrupt, InvalidInput, Unavailable
from shuntserve.job import chunks, manifests
from shuntserve.job import ingest as ingest_module
from shuntserve.job.ingest import IngestProgress, ingest, load_manifest, load_page
from shuntserve.job.submission import submit_spec
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from tests.support.ingesting import ingest_columns, ingest_files, read_back

SMALL = ChunkPolicy(expected_workers=1, rounds=1, min_rows=1, max_rows=5)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Sixty prompts, ten of them empty, with ids."""
    path = tmp_path / "prompts.parquet"
    texts = ["" if row % 6 == 5 else f"the fox number {row}" for row in range(60)]
    pq.write_table(pa.table({"request_id": [f"r{row}" for row in range(60)], "prompt": texts}), path)
    return path


def test_an_ingest_that_was_done_is_not_done_again(prompts: Path, model: Path) -> None:
    """A second call returns the stored manifest and writes nothing, even when the input is gone."""
    bucket = open_bucket("memory://done-once")
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))
    first = ingest(bucket, job)
    before = [info.key for info in bucket.list(keys.job(job.job_id))]
    prompts.unlink()

    assert ingest(bucket, job) == first == load_manifest(bucket, job.job_id)
    assert [info.key for info in bucket.list(keys.job(job.job_id))] == before


def test_before_an_ingest_has_finished_there_is_no_manifest(prompts: Path, model: Path) -> None:
    """Chunks alone are nothing."""
    bucket = open_bucket("memory://unfinished")
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))

    assert load_manifest(bucket, job.job_id) is None


def test_two_ingests_at_once_agree_on_one(prompts: Path, model: Path) -> None:
    """Both callers get the same manifest, whose objects are all of one attempt."""
    bucket = open_bucket("memory://two-at-once")
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))
    meet = threading.Barrier(2)
    results: list[Any] = []

    def attempt() -> None:
        results.append(ingest(bucket, job, on_progress=once(lambda: meet.wait(30)), policy=SMALL))

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert results[0] == results[1]
    done = read_back(bucket, job, results[0])
    assert {ref.key.split("/")[3] for ref, _ in done.chunks} == {done.manifest.attempt}
    assert len({key.split("/")[3] for key in _keys(bucket, job.job_id, "chunks")}) == 2


def test_a_crashed_attempt_and_its_rerun_never_mix(tmp_path: Path, prompts: Path, model: Path) -> None:
    """An ingest killed in the middle leaves chunks but no manifest; the rerun counts its own alone."""
    where = tmp_path / "bucket"
    bucket = open_bucket(where)
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))
    program = (
        "import os, signal, sys\n"
        "from shuntserve.core.chunking import ChunkPolicy\n"
        "from shuntserve.job import ingest as module\n"
        "from shuntserve.job.submission import load_job\n"
        "from shuntserve.store.open import open_bucket\n"
        "bucket = open_bucket(sys.argv[1])\n"
        "class Dying:\n"
        "    puts = 0\n"
        "    def __getattr__(self, name): return getattr(bucket, name)\n"
        "    def put(self, key, body):\n"
        "        bucket.put(key, body)\n"
        "        Dying.puts += 1\n"
        "        if Dying.puts == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "policy = ChunkPolicy(expected_workers=1, rounds=1, min_rows=1, max_rows=5)\n"
        "module.ingest(Dying(), load_job(bucket, sys.argv[2]), attempt_id='crashed', policy=policy)\n"
    )
    crashed = subprocess.run([sys.executable, "-c", program, str(where), job.job_id], timeout=120)
    assert crashed.returncode == -signal.SIGKILL
    assert _keys(bucket, job.job_id, "chunks/crashed")
    assert load_manifest(bucket, job.job_id) is None

    done = read_back(bucket, job, ingest(bucket, job, policy=SMALL))

    assert done.manifest.attempt != "crashed"
    assert not [ref.key for ref, _ in done.chunks if "crashed" in ref.key]
    assert sorted(row["source_row"] for row in [*done.rows, *done.rejects]) == list(range(60))
    assert {reject["code"] for reject in done.rejects} == {"empty_prompt"}


def test_equal_input_gives_equal_chunks(prompts: Path, model: Path) -> None:
    """Which rows stand in which chunk, and with which bytes, does not depend on the attempt."""
    hashes = []
    for attempt in ("one", "two"):
        bucket = open_bucket(f"memory://equal-{attempt}")
        job = submit_spec(bucket, JobSpec(input=prompts, model=model))
        manifest = ingest(bucket, job, attempt_id=attempt, policy=SMALL)
        hashes.append([ref.sha256 for page in manifest.pages for ref in load_page(bucket, page)])

    assert hashes[0] == hashes[1]


def test_pages_hold_no_more_chunks_than_they_may(prompts: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full page is written and the next begun; a chunk's page follows from its number."""
    monkeypatch.setattr(keys, "CHUNKS_PER_PAGE", 3)

    done = ingest_files(prompts, model, policy=SMALL)

    assert len(done.manifest.pages) > 2
    assert all(page.chunks == 3 for page in done.manifest.pages[:-1])
    for page in done.manifest.pages:
        assert all(keys.page_of(ref.chunk) == page.page for ref in load_page(done.bucket, page))
    assert sum(page.rows for page in done.manifest.pages) == done.manifest.rows_valid == len(done.rows)


def test_windows_cut_in_the_middle_lose_nothing(prompts: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With windows smaller than the input, every row is in one chunk and chunk sizes never grow."""
    monkeypatch.setattr(chunks, "WINDOW_ROWS", 16)
    monkeypatch.setattr("shuntserve.job.reading.BATCH_ROWS", 7)

    done = ingest_files(prompts, model, policy=ChunkPolicy(expected_workers=1, rounds=4, min_rows=2, max_rows=9))

    assert sorted(row["source_row"] for row in [*done.rows, *done.rejects]) == list(range(60))
    sizes = [ref.rows for ref, _ in done.chunks]
    assert sizes[0] == 9
    assert sizes == sorted(sizes, reverse=True)


def test_rejects_are_written_in_several_objects_when_they_are_many(
    prompts: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held in memory is bounded; all objects are named by the manifest."""
    monkeypatch.setattr(ingest_module, "REJECTS_PER_OBJECT", 3)
    monkeypatch.setattr("shuntserve.job.reading.BATCH_ROWS", 7)

    done = ingest_files(prompts, model)

    assert len(done.manifest.reject_keys) > 2
    assert [reject["source_row"] for reject in done.rejects] == list(range(5, 60, 6))


def test_rows_with_a_common_prefix_share_chunks(tmp_path: Path, model: Path) -> None:
    """Two long system prompts that take turns in the input are apart in the chunks."""
    prefix = ["the quick brown fox jumps over the lazy dog " * 3, "answer with one word only and nothing else " * 3]
    texts = [prefix[row % 2] + str(row) for row in range(40)]

    done = ingest_columns(
        tmp_path, model, {"prompt": texts}, policy=ChunkPolicy(expected_workers=1, rounds=1, min_rows=1, max_rows=20)
    )

    kinds = [{row["source_row"] % 2 for row in rows} for _, rows in done.chunks]
    assert kinds == [{0}, {1}]


def test_a_damaged_or_missing_chunk_is_corrupt(prompts: Path, model: Path) -> None:
    """Chunks and pages are read only as the manifest sealed them."""
    done = ingest_files(prompts, model)
    ref, page = done.chunks[0][0], done.manifest.pages[0]
    good = done.bucket.get(ref.key)

    done.bucket.put(ref.key, good[:-1] + b"x")
    with pytest.raises(Corrupt, match="does not have the content"):
        manifests.load_chunk(done.bucket, ref)
    done.bucket.delete(ref.key)
    with pytest.raises(Corrupt, match="absent"):
        manifests.load_chunk(done.bucket, ref)
    done.bucket.put(page.key, b"{}")
    with pytest.raises(Corrupt, match="does not have the content"):
        load_page(done.bucket, page)


def test_a_manifest_that_is_none_is_corrupt(prompts: Path, model: Path) -> None:
    """Objects of another shape under its key end the reader."""
    bucket = open_bucket("memory://no-manifest")
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))
    bucket.put(keys.manifest(job.job_id), b'{"schema_version": 1, "writer": "x", "pages": []}')

    with pytest.raises(Corrupt, match="not a manifest"):
        load_manifest(bucket, job.job_id)


def test_input_that_changed_since_submission_is_refused(prompts: Path, model: Path) -> None:
    """The job is of the old content; what to do is said."""
    bucket = open_bucket("memory://changed-input")
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))
    pq.write_table(pa.table({"request_id": ["x"], "prompt": ["y"]}), prompts)

    with pytest.raises(InvalidInput, match=r"changed after the job was submitted.*submit again"):
        ingest(bucket, job)
    assert load_manifest(bucket, job.job_id) is None


def test_input_that_was_only_touched_is_still_the_same(prompts: Path, model: Path) -> None:
    """Another modification time makes the content be compared, not the job be refused."""
    bucket = open_bucket("memory://touched-input")
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))
    os.utime(prompts, (1, 1))

    assert ingest(bucket, job).rows_valid == 50


def test_input_that_changes_while_it_is_read_is_refused(prompts: Path, model: Path) -> None:
    """A file written to during ingest is found out at its end."""
    bucket = open_bucket("memory://changing-input")
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))

    with pytest.raises(InvalidInput, match="changed after the job was submitted"):
        ingest(bucket, job, on_progress=once(lambda: os.utime(prompts, (1, 1))))


def test_a_tokenizer_that_changed_since_submission_is_refused(tmp_path: Path, prompts: Path, model: Path) -> None:
    """Token ids of another tokenizer would be another job's."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    bucket = open_bucket("memory://changed-tokenizer")
    job = submit_spec(bucket, JobSpec(input=prompts, model=copy))
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")

    with pytest.raises(InvalidInput, match=r"tokenizer.*changed"):
        ingest(bucket, job)


def test_a_bucket_that_fails_ends_the_ingest_and_a_rerun_succeeds(prompts: Path, model: Path) -> None:
    """Whatever was written before the failure does not disturb the second attempt."""
    bucket = open_bucket("memory://failing")
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))
    failing = FailingPuts(bucket, succeed=3)

    with pytest.raises(Unavailable, match="out of order"):
        ingest(failing, job, policy=SMALL)
    done = read_back(bucket, job, ingest(bucket, job, policy=SMALL))

    assert sorted(row["source_row"] for row in [*done.rows, *done.rejects]) == list(range(60))


def test_progress_tells_both_passes_and_ends_at_the_total(prompts: Path, model: Path) -> None:
    """Ids are compared first, then rows are counted up to the end."""
    seen: list[IngestProgress] = []
    bucket = open_bucket("memory://progress")

    ingest(bucket, submit_spec(bucket, JobSpec(input=prompts, model=model)), on_progress=seen.append)

    assert [step.checking_ids for step in seen] == sorted((step.checking_ids for step in seen), reverse=True)
    assert seen[0].checking_ids
    assert (seen[-1].rows_done, seen[-1].rows_total, seen[-1].rows_rejected) == (60, 60, 10)


class FailingPuts:
    """A bucket whose writes fail after some have succeeded; everything else goes through."""

    def __init__(self, inner: Bucket, succeed: int) -> None:
        self._inner, self._left = inner, succeed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put(self, key: str, body: bytes) -> None:
        self._left -= 1
        if self._left < 0:
            raise Unavailable(key, "the disk is out of order", "try again")
        self._inner.put(key, body)


def once(do: Callable[[], Any]) -> Callable[[IngestProgress], None]:
    """A progress callback that acts on its first call."""
    left = [do]

    def report(_: IngestProgress) -> None:
        if left:
            left.pop()()

    return report


def _keys(bucket: Bucket, job_id: str, folder: str) -> list[str]:
    return [info.key for info in bucket.list(f"{keys.job(job_id)}/{folder}")]
