"""What goes wrong in a local directory is told apart, by errno, as a user needs it told."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shuntserve.errors import InvalidInput, NotFound, Unavailable
from shuntserve.store.check import check_bucket
from shuntserve.store.local_errors import LocalErrors, explain_errno
from shuntserve.store.open import open_bucket
from shuntserve.store.verbs import Call, Verb

TRY = """
import sys
from shuntserve.errors import ShuntServeError
from shuntserve.store.open import open_bucket

def attempt(name, use):
    try:
        use()
        print(f"{name}: fine")
    except ShuntServeError as error:
        print(f"{name}: {type(error).__name__}: {error}")
"""


def run_in_shell(script: str, program: str, *, wrapped_by: list[str]) -> list[str]:
    """Lines that `program` prints, started by `script` (as `$PYTHON`) inside a namespace or with fewer rights."""
    ran = subprocess.run(
        [*wrapped_by, "bash", "-ec", script],
        env=os.environ | {"PYTHON": sys.executable, "PROGRAM": TRY + program},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def can_mount() -> bool:
    """Whether this user may make a mount namespace: containers often forbid it."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs to mount a small file system of its own")
def test_full_and_read_only_disks_are_named(tmp_path: Path) -> None:
    """A full disk stays full after every try and is said to be full; a read-only one is said to be read-only."""
    script = f"""
        mkdir {tmp_path}/small {tmp_path}/fixed
        mount -t tmpfs -o size=64k none {tmp_path}/small
        mount -t tmpfs -o ro none {tmp_path}/fixed
        "$PYTHON" -c "$PROGRAM" {tmp_path}/small {tmp_path}/fixed
    """
    program = """
small, fixed = open_bucket(sys.argv[1]), open_bucket(sys.argv[2])
attempt("before", lambda: small.create("a", bytes(30_000)))
attempt("create", lambda: small.create("b", bytes(60_000)))
attempt("put", lambda: small.put("b", bytes(60_000)))
attempt("read", lambda: small.get("a"))
attempt("still fits", lambda: small.put("c", bytes(10_000)))
attempt("fixed", lambda: fixed.create("a/b", b"1"))
print([info.key for info in small.list("")])
"""
    before, create, put, read, fits, fixed, listed = run_in_shell(
        script, program, wrapped_by=["unshare", "--user", "--map-root-user", "--mount"]
    )

    assert before == "before: fine"
    for line in (create, put):
        assert "InvalidInput" in line
        assert "/small/b: no space is left on the disk" in line
        assert "free some space" in line
    assert (read, fits, listed) == ("read: fine", "still fits: fine", "['a', 'c']")
    assert "InvalidInput" in fixed
    assert "the file system is read-only" in fixed


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    """`ulimit -f` is not a broken store: it is said to be the limit, and nothing half-written is left."""
    program = """
bucket = open_bucket(sys.argv[1])
attempt("large", lambda: bucket.create("a", bytes(300_000)))
attempt("small", lambda: bucket.create("b", bytes(1000)))
print([info.key for info in bucket.list("")])
"""
    large, small, listed = run_in_shell(f'ulimit -f 100; "$PYTHON" -c "$PROGRAM" {tmp_path}', program, wrapped_by=[])

    assert "InvalidInput" in large
    assert "larger than allowed" in large
    assert (small, listed) == ("small: fine", "['b']")
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root needs setpriv to be refused")
def test_missing_permissions_are_named(tmp_path: Path) -> None:
    """A directory that may not be written, and objects that may not be read, are InvalidInput with the place."""
    for name in ("write", "read"):
        (tmp_path / name).mkdir()
    (tmp_path / "read" / "secret").write_bytes(b"1")
    (tmp_path / "read" / "closed").mkdir()
    (tmp_path / "read" / "secret").chmod(0)
    (tmp_path / "read" / "closed").chmod(0)
    (tmp_path / "write").chmod(0o500)
    program = """
write, read = open_bucket(sys.argv[1]), open_bucket(sys.argv[2])
attempt("create", lambda: write.create("a/b", b"1"))
attempt("put", lambda: write.put("a", b"1"))
attempt("get", lambda: read.get("secret"))
attempt("head", lambda: read.head("closed/x"))
attempt("list", lambda: list(read.list("")))
attempt("list_dirs", lambda: read.list_dirs("closed"))
attempt("open", lambda: open_bucket(sys.argv[1] + "/new"))
"""
    lines = run_in_shell(
        f'"$PYTHON" -c "$PROGRAM" {tmp_path}/write {tmp_path}/read',
        program,
        wrapped_by=["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else [],
    )

    assert len(lines) == 7
    for line in lines:
        assert "InvalidInput" in line
        assert str(tmp_path) in line
        assert "permission denied" in line
    (tmp_path / "read" / "closed").chmod(0o700)


def test_a_file_where_a_directory_is_needed_is_named(tmp_path: Path) -> None:
    """An object cannot also be a directory in a file system: both ways round say so, whatever the verb."""
    bucket = open_bucket(tmp_path)
    bucket.put("file", b"1")
    bucket.put("dir/x", b"1")

    with pytest.raises(InvalidInput, match="file, not a directory"):
        bucket.put("file/x", b"1")
    with pytest.raises(InvalidInput, match="file, not a directory"):
        bucket.create("file/x", b"1")
    with pytest.raises(InvalidInput, match="it is a directory"):
        bucket.put("dir", b"1")
    with pytest.raises(InvalidInput, match="it is a directory"):
        bucket.create("dir", b"1")
    with pytest.raises(InvalidInput, match="it is a directory"):
        bucket.delete("dir")
    assert bucket.get("dir/x") == b"1"


def test_too_long_a_path_is_named(tmp_path: Path) -> None:
    """Keys are limited, so only a root that is itself very deep can make a path too long."""
    deep = str(tmp_path)
    while len(deep) + 100 < os.pathconf("/", "PC_PATH_MAX") - 200:
        deep += "/" + "d" * 90
    bucket = open_bucket(deep)

    with pytest.raises(InvalidInput, match="name is too long"):
        bucket.put("/".join(["k" * 200] * 4), b"1")


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (errno.ENOSPC, InvalidInput, "no space"),
        (errno.EDQUOT, InvalidInput, "quota"),
        (errno.EACCES, InvalidInput, "permission denied"),
        (errno.EPERM, InvalidInput, "hard links"),
        (errno.EROFS, InvalidInput, "read-only"),
        (errno.EIO, Unavailable, "error"),
        (errno.ESTALE, Unavailable, "file handle"),
        (errno.EMFILE, Unavailable, "open files"),
    ],
)
def test_what_stays_is_the_users_and_what_passes_is_unavailable(code: int, kind: type, says: str) -> None:
    """An errno that someone must act on is InvalidInput; one that may pass by itself is Unavailable."""
    explained = explain_errno("thing", OSError(code, os.strerror(code)))

    assert type(explained) is kind
    assert says in str(explained)


def test_trouble_that_has_passed_is_unavailable_and_leaves_nothing(tmp_path: Path) -> None:
    """When doing it again works, the error was a passing one; the trial itself leaves no file behind."""
    explain = LocalErrors("file:///x", tmp_path)

    for verb in Verb:
        assert isinstance(explain(Call(verb, "a/b", 10), OSError(errno.EIO, "once")), Unavailable | NotFound)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_check_bucket_tells_before_any_work(tmp_path: Path) -> None:
    """The first try of a bucket meets the same clear error that the job would have met."""
    (tmp_path / ".shuntserve").write_bytes(b"in the way")

    with pytest.raises(InvalidInput, match="file, not a directory"):
        check_bucket(open_bucket(tmp_path))
