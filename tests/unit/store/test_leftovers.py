"""Half-written files of killed writers go away, and nothing else does."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shuntserve.store.leftovers import remove_leftovers
from shuntserve.store.open import open_bucket
from shuntserve.store.patience import Patience


def test_only_staging_files_go(tmp_path: Path) -> None:
    """Objects with '#' in their names stay, staging files go, under the prefix alone."""
    root = tmp_path / "a #1 b"
    bucket = open_bucket(root)
    for key in ("data/part-0.parquet", "data/x#", "data/a#1b", "data/a#1#2", "other/k"):
        bucket.put(key, b"1")
    for name in ("data/part-0.parquet#1", "data/part-0.parquet#12", "data/deep#3", "other/k#1"):
        (root / name).write_bytes(b"half")
    objects = [info.key for info in bucket.list("")]

    assert remove_leftovers(bucket, "data", now_s=time.time() + 1, older_than_s=0) == 3

    assert [info.key for info in bucket.list("")] == objects
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert left == {*objects, "other/k#1"}


def test_recent_files_stay(tmp_path: Path) -> None:
    """What may belong to a writer at work is left alone until it is old."""
    bucket = open_bucket(tmp_path)
    (tmp_path / "k#1").write_bytes(b"half")

    assert remove_leftovers(bucket, now_s=time.time(), older_than_s=3600) == 0
    assert (tmp_path / "k#1").exists()
    assert remove_leftovers(bucket, now_s=time.time() + 3601, older_than_s=3600) == 1


def test_other_kinds_of_bucket_have_none() -> None:
    """Memory (and S3) keep nothing half-written."""
    assert remove_leftovers(open_bucket(f"memory://{uuid.uuid4().hex}"), now_s=0.0) == 0


def test_a_create_at_work_survives_the_sweep(tmp_path: Path) -> None:
    """Even a sweep without any patience costs a live writer nothing: its create tries again."""
    bucket = open_bucket(tmp_path, patience=Patience(create_tries=100))
    done = threading.Event()

    def sweep() -> int:
        removed = 0
        while not done.is_set():
            removed += remove_leftovers(bucket, now_s=time.time() + 1, older_than_s=0)
        return removed

    with ThreadPoolExecutor(1) as pool:
        sweeper = pool.submit(sweep)
        try:
            for number in range(300):
                body = f"{number}".encode() * 20_000
                assert bucket.create(f"k{number}", body)
                assert bucket.get(f"k{number}") == body
        finally:
            done.set()
        sweeper.result()
    assert len(list(bucket.list(""))) == 300
