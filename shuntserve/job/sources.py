"""Where input files are: local paths and S3 URLs, directories and globs, and how their bytes are read.

Everything goes through fsspec, so that `AWS_ENDPOINT_URL`, profiles and roles mean for input what they mean for any
AWS tool. A file is opened *as it was found*: S3 answers only while the object's ETag is the same (If-Match), and a
local file must keep its size and modification time while it is read.
"""

from __future__ import annotations

import glob
import os
import posixpath
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from shuntserve.errors import InvalidInput, NotFound, Unavailable

S3_SCHEMES = ("s3://", "s3a://")
_IGNORED_NAMES = frozenset({"job.yaml", "job.yml"})
_GLOB = frozenset("*?[")
_S3_BLOCK_BYTES = 8 << 20
_CREDENTIAL_ERRORS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"}
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the input as found. `version` changes when its content does."""

    location: str
    size_bytes: int
    version: str


def find_sources(inputs: Sequence[str]) -> list[SourceFile]:
    """Every file the inputs name, once each, in the order of their locations.

    A directory stands for all files below it; names that begin with `.` or `_` are left out, as every Parquet reader
    does, and so is the directory's `job.yaml`. Raises NotFound, InvalidInput, Unavailable.
    """
    found: dict[str, SourceFile] = {}
    for item in inputs:
        matches = _find_s3(item) if item.startswith(S3_SCHEMES) else _find_local(item)
        found.update((source.location, source) for source in matches)
    return [found[location] for location in sorted(found)]


def names_of(locations: Sequence[str]) -> list[str]:
    """Each location relative to the directory they all share: a file's name in rows, unique and free of where the data
    lies."""
    if len({location.startswith(S3_SCHEMES) for location in locations}) > 1:
        return list(locations)
    parents = [posixpath.dirname(location) for location in locations]
    common = posixpath.commonpath(parents) if parents else ""
    while "=" in posixpath.basename(
        common
    ):  # `day=2030-01-31` is a column (see `first_look.hive_columns`), so it stays
        common = posixpath.dirname(common)
    return [posixpath.relpath(location, common) if common else location for location in locations]


@contextmanager
def open_source(source: SourceFile) -> Iterator[BinaryIO]:
    """The file's bytes, seekable. Raises InvalidInput when it is no longer the file that was found."""
    with translated(source.location):
        if source.location.startswith(S3_SCHEMES):
            with _open_s3(source) as file:
                yield file
        else:
            with open(source.location, "rb") as local:
                _must_be_unchanged(source, os.fstat(local.fileno()))
                yield local
                _must_be_unchanged(source, os.fstat(local.fileno()))


@contextmanager
def translated(location: str) -> Iterator[None]:
    """Turns what the file system and S3 raise into errors with a cause and a next step."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in _s3_codes(error):
            raise NotFound(location, "there is no such bucket", "check the bucket's name and region") from error
        raise NotFound(location, "does not exist", _advice_if_missing(location)) from error
    except PermissionError as error:
        advice = "check the AWS credentials" if location.startswith(S3_SCHEMES) else "check the file's permissions"
        raise InvalidInput(location, "may not be read", advice) from error
    except IsADirectoryError as error:
        raise InvalidInput(location, "is a directory", "name its files or the directory itself as input") from error
    except OSError as error:
        if not _s3_codes(error).isdisjoint(("PreconditionFailed", "412")):
            raise _changed(location) from error
        raise Unavailable(location, f"cannot be read: {error.strerror or type(error).__name__}", "try again") from error
    except _botocore_errors() as error:
        if type(error).__name__ in _CREDENTIAL_ERRORS:
            raise InvalidInput(
                location, "no AWS credentials were found", "set AWS_PROFILE or AWS_ACCESS_KEY_ID"
            ) from error
        raise Unavailable(location, f"cannot be reached ({type(error).__name__})", "check the endpoint") from error


def _botocore_errors() -> tuple[type[Exception], ...]:
    """botocore's own errors (no credentials, no route), which are no OSErrors; none can be met before it is loaded."""
    loaded = sys.modules.get("botocore.exceptions")
    return (loaded.BotoCoreError,) if loaded is not None else ()


def _find_local(item: str) -> list[SourceFile]:
    path = Path(item.removeprefix("file://")).expanduser()
    with translated(item):
        if path.is_dir():
            files = [
                Path(root) / name
                for root, _, names in os.walk(path)
                for name in names
                if _counts(Path(root).relative_to(path), name)
            ]
            if not files:
                raise NotFound(item, "holds no files", "name a directory of Parquet files or of OpenAI batch JSONL")
        elif path.exists():
            files = [path]
        elif _GLOB & set(item):
            files = [Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file()]
            if not files:
                raise NotFound(item, "matches no file", "check the pattern")
        else:
            raise FileNotFoundError(item)
        return [_local_source(file) for file in files]


def _counts(folder: Path, name: str) -> bool:
    return name not in _IGNORED_NAMES and not any(part.startswith((".", "_")) for part in (*folder.parts, name))


def _local_source(path: Path) -> SourceFile:
    status = path.stat()
    return SourceFile(str(path.resolve()), status.st_size, _local_version(status))


def _local_version(status: os.stat_result) -> str:
    return f"mtime_ns:{status.st_mtime_ns} size:{status.st_size}"


def _must_be_unchanged(source: SourceFile, status: os.stat_result) -> None:
    if _local_version(status) != source.version:
        raise _changed(source.location)


def _changed(location: str) -> InvalidInput:
    return InvalidInput(location, "changed after the job was submitted", "submit again; what changed is a new job")


def _find_s3(item: str) -> list[SourceFile]:
    with translated(item):
        fs = s3_filesystem()
        path = "s3://" + item.split("://", 1)[1]
        if _GLOB & set(path):
            details = fs.glob(path, detail=True)
        else:
            details = fs.find(path, detail=True)
        top = path.split("://", 1)[1].rstrip("/")
        exact = bool(_GLOB & set(path))
        entries = [
            info
            for key, info in sorted(details.items())
            if info["type"] == "file" and not key.endswith("/") and (exact or key == top or _counts_key(key, top))
        ]
        if not entries:
            raise NotFound(item, "matches no object", "check the key or pattern")
        return [SourceFile(f"s3://{info['name']}", info["size"], _s3_version(info)) for info in entries]


def _counts_key(key: str, top: str) -> bool:
    relative = Path(posixpath.relpath(key, top))
    return _counts(relative.parent, relative.name)


def _s3_version(details: dict[str, Any]) -> str:
    return f"etag:{str(details['ETag']).strip(chr(34))}"


@cache
def s3_filesystem() -> Any:
    """This process's way to S3. It keeps no listings: what is found is never older than the call."""
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


@contextmanager
def _open_s3(source: SourceFile) -> Iterator[BinaryIO]:
    with s3_filesystem().open(source.location, "rb", block_size=_S3_BLOCK_BYTES) as file:
        if _s3_version(file.details) != source.version:
            raise _changed(source.location)
        yield cast("BinaryIO", file)


def _s3_codes(error: BaseException) -> set[str]:
    """The error codes S3 answered with, which s3fs keeps as causes of its own errors."""
    codes: set[str] = set()
    cause = error.__cause__
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            codes.add(str(response.get("Error", {}).get("Code")))
        cause = cause.__cause__
    return codes


def _advice_if_missing(location: str) -> str:
    if location.startswith(S3_SCHEMES):
        return "check the bucket's name, the key and the region"
    folder = Path(location).expanduser().absolute().parent
    return f"look into {folder}" if folder.is_dir() else f"there is no directory {folder} either"
