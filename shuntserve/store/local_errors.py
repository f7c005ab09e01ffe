"""What went wrong in a local directory, told by errno.

The store reports nearly every failure of the file system as one class without a code. So the step that failed is
done once more with the operating system's own calls, beside the object and invisible to readers, and the errno of
that decides. When nothing fails any more the trouble has passed: `Unavailable`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from shuntserve.errors import InvalidInput, NotFound, ShuntServeError, Unavailable
from shuntserve.store.verbs import Call, Verb

_CAUSES: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space is left on the disk", "free some space and run the same command again, which continues"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again, which continues"),
    errno.EFBIG: ("the file would be larger than allowed", "raise the limit on file sizes (ulimit -f)"),
    errno.EACCES: ("permission denied", "choose a directory you may read and write, or change its permissions"),
    errno.EPERM: ("operation not permitted", "choose a directory on a file system that supports hard links"),
    errno.EOPNOTSUPP: ("operation not supported", "choose a directory on a file system that supports hard links"),
    errno.EROFS: ("the file system is read-only", "choose a directory on a writable file system"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a directory with a shorter path"),
    errno.ENOTDIR: (
        "a part of its path is a file, not a directory",
        "choose another directory, or move that file away",
    ),
    errno.EEXIST: ("a part of its path is a file, not a directory", "choose another directory, or move that file away"),
    errno.EISDIR: ("it is a directory, not an object", "choose another directory, or move that one away"),
    errno.ELOOP: ("its path has a loop of symbolic links", "choose another directory"),
}
"""Errors that stay until someone acts. Every other errno may pass by itself."""


class LocalErrors:
    """Translates the errors of a bucket that is the directory `root`."""

    def __init__(self, url: str, root: Path) -> None:
        self._url = url
        self._root = root

    def __call__(self, call: Call, error: Exception | None) -> ShuntServeError:
        """The error to raise for `error`, which ended `call`."""
        path = self._root / call.key if call.key else self._root
        if isinstance(error, FileNotFoundError) and not call.verb.writes:
            return NotFound(f"{self._url}/{call.key}", "no such object", "check the name")
        try:
            self._do_again(call, path)
        except OSError as cause:
            return explain_errno(f"{self._url}/{call.key}", cause)
        return Unavailable(f"{self._url}/{call.key}", f"{call.verb} failed, but would work now", "try again")

    def _do_again(self, call: Call, path: Path) -> None:
        match call.verb:
            case Verb.PUT | Verb.CREATE:
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
                _write_beside(path, call.size_bytes)
            case Verb.GET | Verb.GET_RANGE | Verb.HEAD:
                path.open("rb").close()
            case Verb.LIST | Verb.LIST_DIRS:
                _walk(path)
            case Verb.DELETE:
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
                if path.exists() and not os.access(path.parent, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def explain_errno(thing: str, error: OSError) -> ShuntServeError:
    """The error to raise for an operating system error: what stays is the user's to change, the rest may pass."""
    cause, next_step = _CAUSES.get(error.errno or 0, (None, None))
    if cause is None:
        return Unavailable(thing, os.strerror(error.errno or errno.EIO), "try again")
    where = f" ({error.filename})" if error.filename else ""
    return InvalidInput(thing, cause + where, next_step or "")


def _write_beside(path: Path, size_bytes: int) -> None:
    """Do what a create does (directory, file, bytes, hard link) under a name that listings skip; leave nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staged = tempfile.mkstemp(prefix=".probe-", suffix="#0", dir=path.parent)
    linked = f"{staged}0"
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(size_bytes))
        os.link(staged, linked)
        os.unlink(linked)
    except OSError as error:
        error.filename, error.filename2 = str(path.parent), None
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(staged)


def _walk(path: Path) -> None:
    if not path.is_dir():
        return

    def fail(error: OSError) -> None:
        if error.errno != errno.ENOENT:
            raise error

    for _ in os.walk(path, onerror=fail, followlinks=True):
        pass
