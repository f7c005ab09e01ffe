"""Opening a bucket by its URL."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from shuntserve.errors import InvalidInput, NotFound
from shuntserve.store.open import open_bucket
from shuntserve.store.s3_access import S3Options

KEYS = S3Options(region="eu-west-1", access_key_id="a", secret_access_key="b")


def test_every_spelling_of_a_directory_is_one_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path, plain string, relative string, `~` and file:// open the same directory and say the same URL."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    there = tmp_path / "a b"
    open_bucket(there).put("k", b"1")

    for spelling in (there, str(there), "a b", "./a b", "~/a b", there.as_uri(), f"file://localhost{tmp_path}/a%20b"):
        bucket = open_bucket(spelling)
        assert bucket.get("k") == b"1"
        assert bucket.url == there.as_uri()


def test_a_url_opens_what_it_names(tmp_path: Path) -> None:
    """`url` is itself openable, for local, memory and S3."""
    for bucket in (
        open_bucket(tmp_path / "ü #1%"),
        open_bucket("memory://name"),
        open_bucket("s3://bkt/pre/fix", s3=KEYS),
    ):
        assert open_bucket(bucket.url, s3=KEYS).url == bucket.url


def test_a_directory_is_made_only_when_asked(tmp_path: Path) -> None:
    """`mkdir=False` says that there is no such directory, and does not make one."""
    with pytest.raises(NotFound, match="no such directory"):
        open_bucket(tmp_path / "absent", mkdir=False)
    assert not (tmp_path / "absent").exists()

    open_bucket(tmp_path / "made/deep")
    assert (tmp_path / "made/deep").is_dir()


def test_a_file_is_not_a_bucket(tmp_path: Path) -> None:
    """A path that is a file, or leads through one, is said to be no directory."""
    (tmp_path / "file").write_bytes(b"")

    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput, match="not a directory"):
            open_bucket(path)


def test_buckets_in_memory_are_shared_by_name() -> None:
    """One name is one bucket within the process; another name is another."""
    one, other = uuid.uuid4().hex, uuid.uuid4().hex
    open_bucket(f"memory://{one}").put("k", b"1")

    assert open_bucket(f"memory://{one}").get("k") == b"1"
    assert open_bucket(f"memory://{other}").head("k") is None


def test_s3_prefixes_are_normalised() -> None:
    """Slashes around the prefix mean nothing."""
    for url in ("s3://bkt/a/b", "s3://bkt/a/b/", "s3://bkt//a/b"):
        assert open_bucket(url, s3=KEYS).url == "s3://bkt/a/b"
    assert open_bucket("s3://bkt/", s3=KEYS).url == "s3://bkt"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gs://bkt/x", "gs:// is not supported"),
        ("https://bkt.s3.amazonaws.com", "https:// is not supported"),
        ("s3a://bkt", "s3a:// is not supported"),
        ("s3://", "not a legal bucket name"),
        ("s3:///x", "not a legal bucket name"),
        ("s3:/bkt", "not a legal bucket name"),
        ("s3://b", "not a legal bucket name"),
        ("s3://under_/x", "not a legal bucket name"),
        ("s3://bkt/a//b", "empty"),
        ("s3://bkt/../b", "'..'"),
        ("memory://", "not the name"),
        ("memory://a/b", "not the name"),
        ("file://host/dir", "not the URL of a directory"),
        ("file:///dir?x=1", "not the URL of a directory"),
        ("bad\0path", "not a path"),
    ],
)
def test_bad_urls_are_refused_with_the_reason(url: str, says: str) -> None:
    """Each wrong URL is InvalidInput that names it and says what would be right."""
    with pytest.raises(InvalidInput, match=says) as caught:
        open_bucket(url, s3=KEYS)
    assert caught.value.next_step
