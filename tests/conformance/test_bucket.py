"""What `store.port.Bucket` promises, held against every kind of bucket there is."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from shuntserve.errors import InvalidInput, NotFound
from shuntserve.store import keys
from shuntserve.store.check import check_bucket
from shuntserve.store.port import Bucket


def names(bucket: Bucket, prefix: str, *, start_after: str | None = None) -> list[str]:
    return [info.key for info in bucket.list(prefix, start_after=start_after)]


def test_what_was_put_is_got(bucket: Bucket) -> None:
    """An object reads back as the bytes that were put, and a second opening of the bucket sees it."""
    bucket.put("a/b", b"one")

    assert bucket.get("a/b") == b"one"


def test_reopening_by_url_finds_the_same_objects(reopen: Callable[[], Bucket]) -> None:
    """Two openings of one URL are one bucket, in both directions."""
    first, second = reopen(), reopen()
    first.put("from/first", b"1")
    second.put("from/second", b"2")

    assert second.get("from/first") == b"1"
    assert first.get("from/second") == b"2"
    assert first.url == second.url


def test_put_overwrites(bucket: Bucket) -> None:
    """The newest put is the object: longer, shorter and empty."""
    for body in (b"a", b"longer than before", b"b", b"", b"c"):
        bucket.put("k", body)
        assert bucket.get("k") == body
        assert names(bucket, "") == ["k"]


def test_get_of_an_absent_object_is_not_found(bucket: Bucket) -> None:
    """NotFound names the object: for get and get_range, and when only a 'directory' has that name."""
    bucket.put("dir/x", b"1")

    for key in ("absent", "dir/absent", "dir"):
        with pytest.raises(NotFound, match=key):
            bucket.get(key)
        with pytest.raises(NotFound, match=key):
            bucket.get_range(key, 0, 1)
        with pytest.raises(NotFound, match=key):
            bucket.get_range(key, 0, 0)


def test_head_tells_size_or_none(bucket: Bucket) -> None:
    """Head gives the size of what is there and None for what is not."""
    bucket.put("dir/x", b"12345")
    bucket.put("empty", b"")

    info = bucket.head("dir/x")
    assert info is not None
    assert (info.key, info.size_bytes) == ("dir/x", 5)
    empty = bucket.head("empty")
    assert empty is not None
    assert empty.size_bytes == 0
    assert bucket.head("absent") is None
    assert bucket.head("dir") is None


def test_head_tells_versions_apart(bucket: Bucket) -> None:
    """The etag changes with the content, and does not without."""
    bucket.put("k", b"one")
    first = bucket.head("k")
    again = bucket.head("k")
    bucket.put("k", b"other")
    second = bucket.head("k")

    assert first is not None
    assert second is not None
    assert first == again
    assert first.etag is not None
    assert first.etag != second.etag


@pytest.mark.parametrize(("start", "end"), [(0, 10), (0, 1), (9, 10), (3, 7), (0, 0), (5, 5), (10, 10)])
def test_get_range_gives_exactly_those_bytes(bucket: Bucket, start: int, end: int) -> None:
    """[start, end) is half-open and exact, empty ranges included."""
    bucket.put("k", b"0123456789")

    assert bucket.get_range("k", start, end) == b"0123456789"[start:end]


@pytest.mark.parametrize(("start", "end"), [(0, 11), (9, 11), (10, 11), (11, 11), (50, 60), (-1, 3), (5, 4)])
def test_get_range_beyond_the_object_is_refused(bucket: Bucket, start: int, end: int) -> None:
    """Fewer bytes than asked for are never passed off as the answer."""
    bucket.put("k", b"0123456789")

    with pytest.raises(InvalidInput, match=r"k: bytes \["):
        bucket.get_range("k", start, end)


def test_first_create_wins_and_second_loses(bucket: Bucket) -> None:
    """A create answers True to the first writer, False to every other, and changes nothing for them."""
    assert bucket.create("k", b"writer one")
    assert not bucket.create("k", b"writer two")
    assert not bucket.create("k", b"")

    assert bucket.get("k") == b"writer one"


def test_create_may_be_repeated_with_the_same_bytes(bucket: Bucket) -> None:
    """The same bytes are the same writer: repeating a create that won answers True again."""
    assert bucket.create("k", b"mine")
    assert bucket.create("k", b"mine")
    assert bucket.get("k") == b"mine"


def test_create_after_put_loses_and_create_after_delete_wins(bucket: Bucket) -> None:
    """'Absent' means absent now, however the object came or went."""
    bucket.put("k", b"put")

    assert not bucket.create("k", b"created")
    bucket.delete("k")
    assert bucket.create("k", b"created")


def test_delete_is_final_and_may_be_repeated(bucket: Bucket) -> None:
    """A deleted object is gone from every verb; deleting what is absent is fine."""
    bucket.put("a/b", b"1")
    bucket.put("a/c", b"2")

    bucket.delete("a/b")
    bucket.delete("a/b")
    bucket.delete("never/was")

    assert bucket.head("a/b") is None
    assert names(bucket, "") == ["a/c"]


def test_a_directory_without_objects_does_not_exist(bucket: Bucket) -> None:
    """Directories are only names in keys: with their last object they are gone."""
    bucket.put("a/b/c", b"1")
    bucket.put("a/d/e", b"1")

    bucket.delete("a/b/c")

    assert list(bucket.list_dirs("a")) == ["d"]
    bucket.delete("a/d/e")
    assert list(bucket.list_dirs("")) == []


def test_empty_object_is_an_object(bucket: Bucket) -> None:
    """No bytes is a valid content: created, read, listed and defended like any other."""
    assert bucket.create("empty", b"")

    assert bucket.get("empty") == b""
    assert not bucket.create("empty", b"x")
    assert [(info.key, info.size_bytes) for info in bucket.list("")] == [("empty", 0)]


def test_list_is_in_key_order_whatever_order_they_came_in(bucket: Bucket) -> None:
    """Keys come in the order of their UTF-8 bytes, as S3 lists them, across 'directories' too."""
    wanted = ["A", "a", "a-/x", "a.b", "a/b", "a/b-", "a/b/c", "a0", "aa", "ä", "日", "😀"]
    shuffled = wanted[:]
    random.Random(7).shuffle(shuffled)
    present = [key for key in shuffled if key not in ("a", "a/b")]  # a directory cannot also be an object locally
    for key in present:
        bucket.put(key, b"x")

    assert names(bucket, "") == [key for key in wanted if key in present]
    assert wanted == sorted(wanted, key=lambda key: key.encode())


def test_prefix_ends_at_a_slash(bucket: Bucket) -> None:
    """'a/b' lists what is under a/b/, and never a/bc, a/b.x or an object named a/b itself."""
    for key in ("a/bc", "a/b.x", "a/b-/1", "a/b2/1", "c"):
        bucket.put(key, b"x")
    assert names(bucket, "a/b") == []
    assert names(bucket, "c") == []

    for key in ("a/b/1", "a/b/2/3"):
        bucket.put(key, b"x")
    assert names(bucket, "a/b") == ["a/b/1", "a/b/2/3"]
    assert names(bucket, "a/b/") == ["a/b/1", "a/b/2/3"]
    assert names(bucket, "absent") == []


def test_start_after_is_exclusive(bucket: Bucket) -> None:
    """Listing goes on after the given key, whether that key exists or not."""
    for number in range(10):
        bucket.put(f"p/{number}", b"x")
    bucket.put("q/0", b"x")

    assert names(bucket, "p", start_after="p/6") == ["p/7", "p/8", "p/9"]
    assert names(bucket, "p", start_after="p/65") == ["p/7", "p/8", "p/9"]
    assert names(bucket, "p", start_after="a") == [f"p/{number}" for number in range(10)]
    assert names(bucket, "p", start_after="p/9") == []
    assert names(bucket, "p", start_after="z") == []


def test_listing_goes_beyond_one_page(bucket: Bucket) -> None:
    """More objects than the 1,000 of one S3 page are all listed, once and in order."""
    wanted = [f"many/{number:05d}" for number in range(1, 1106)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: bucket.put(key, b"x"), reversed(wanted)))

    assert names(bucket, "many") == wanted
    assert names(bucket, "many", start_after="many/00050") == wanted[50:]


def test_list_dirs_names_each_directory_once(bucket: Bucket) -> None:
    """Only the next level, without slashes, without objects, ascending by name."""
    for key in ("a/x/1", "a/x/2", "a/x-y/1", "a/z/deep/er", "a/object", "b/1", "top"):
        bucket.put(key, b"x")

    assert list(bucket.list_dirs("a")) == ["x", "x-y", "z"]
    assert list(bucket.list_dirs("a/z")) == ["deep"]
    assert list(bucket.list_dirs("")) == ["a", "b"]
    assert list(bucket.list_dirs("a/x")) == []
    assert list(bucket.list_dirs("absent")) == []


def test_claim_and_its_release_stand_side_by_side(bucket: Bucket) -> None:
    """An epoch and its `.released` are two objects of one chunk, in that order."""
    claim, released = keys.claim("j", keys.chunk_id(1), 1), keys.released("j", keys.chunk_id(1), 1)

    assert bucket.create(claim, b"worker")
    assert bucket.create(released, b"worker")

    assert names(bucket, keys.claims_chunk("j", keys.chunk_id(1))) == [claim, released]
    assert list(bucket.list_dirs(keys.claims_page("j", keys.page_id(0)))) == [keys.chunk_id(1)]


@pytest.mark.parametrize(
    "key",
    [
        "ünï/çødé",
        "日本/語",
        "😀",
        "with space/and +plus",
        "a&b=c?d#e",
        "100%25",
        "~[1]{2}^`|\"'",
        "a:b;c,d@e$f!g*(h)",
        "x#",
    ],
)
def test_any_printable_name_is_a_key(bucket: Bucket, key: str) -> None:
    """What means something to a URL, a shell or a file system means only itself in a key."""
    assert bucket.create(key, b"1")

    assert bucket.get(key) == b"1"
    assert names(bucket, "") == [key]
    assert names(bucket, "", start_after=key) == []
    assert not bucket.create(key, b"2")
    bucket.delete(key)
    assert bucket.head(key) is None


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", ".", "a/..", "../a", "a\nb", "nul\0", "a/b#1", "\ud800", "x" * 241, "y/" * 460 + "z"],
)
def test_names_that_mean_something_else_somewhere_are_refused(bucket: Bucket, key: str) -> None:
    """A key that a file system, S3 or obstore would read differently is InvalidInput, for every verb."""
    for use in (
        lambda: bucket.put(key, b""),
        lambda: bucket.create(key, b""),
        lambda: bucket.get(key),
        lambda: bucket.get_range(key, 0, 1),
        lambda: bucket.head(key),
        lambda: bucket.delete(key),
    ):
        with pytest.raises(InvalidInput):
            use()


@pytest.mark.parametrize("prefix", ["/a", "a//", "..", "a/./b"])
def test_bad_prefixes_are_refused(bucket: Bucket, prefix: str) -> None:
    """A prefix is the beginning of a key or nothing."""
    with pytest.raises(InvalidInput):
        list(bucket.list(prefix))
    with pytest.raises(InvalidInput):
        bucket.list_dirs(prefix)


def test_large_objects_survive_whole(bucket: Bucket) -> None:
    """20 MB go in by put and by create and come out the same, also in part."""
    body = random.Random(1).randbytes(20_000_000)

    bucket.put("put", body)
    assert bucket.create("created", body)

    digest = hashlib.sha256(body).digest()
    assert hashlib.sha256(bucket.get("put")).digest() == digest
    assert hashlib.sha256(bucket.get("created")).digest() == digest
    assert bucket.get_range("put", 10_000_000, 12_000_000) == body[10_000_000:12_000_000]
    assert not bucket.create("created", body[:-1] + b"\0")


def test_of_many_threads_exactly_one_creates(bucket: Bucket) -> None:
    """However many threads create a key at once, one is told that it won, and its bytes are stored."""
    threads = 8
    with ThreadPoolExecutor(threads) as pool:
        for round_ in range(12):
            start = threading.Barrier(threads)

            def create(number: int, start: threading.Barrier = start, round_: int = round_) -> bool:
                start.wait()
                return bucket.create(f"race/{round_}", f"writer {number}".encode())

            won = list(pool.map(create, range(threads)))

            assert won.count(True) == 1
            assert bucket.get(f"race/{round_}") == f"writer {won.index(True)}".encode()


def test_readers_never_see_part_of_an_object(bucket: Bucket) -> None:
    """While an object is overwritten again and again, every read is one of the whole versions."""
    versions = [bytes([number]) * 300_000 for number in range(4)]
    bucket.put("k", versions[0])
    done = threading.Event()

    def write() -> None:
        for number in range(40):
            bucket.put("k", versions[number % 4])
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        reads = 0
        while not done.is_set() or reads == 0:
            assert bucket.get("k") in versions
            assert names(bucket, "") == ["k"]
            reads += 1
        writer.result()


def test_check_bucket_accepts_a_good_bucket_and_leaves_nothing(bucket: Bucket) -> None:
    """The first try of a bucket passes on every kind and cleans up."""
    check_bucket(bucket)

    assert names(bucket, "") == []


def test_url_is_what_a_user_would_write(bucket: Bucket) -> None:
    """Errors and listings can name the bucket."""
    assert bucket.url.startswith(("s3://conformance/", "file:///", "memory://"))
    with pytest.raises(NotFound, match="absent") as caught:
        bucket.get("absent")
    assert caught.value.thing == f"{bucket.url}/absent"
    assert caught.value.next_step


def test_objects_tell_when_they_were_written(bucket: Bucket) -> None:
    """By the bucket's own clock: a later write is never earlier than one before it, in a listing as in a head."""
    bucket.put("first", b"1")
    bucket.put("second", b"2")

    listed = {info.key: info.modified_unix_s for info in bucket.list("")}
    heads = {key: bucket.head(key) for key in listed}

    assert listed["first"] is not None
    assert listed["second"] is not None
    assert listed["first"] <= listed["second"]
    assert {key: head.modified_unix_s for key, head in heads.items() if head is not None} == listed
