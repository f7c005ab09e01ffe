"""What a drop folder's listing means: which submissions there are, which are complete, what has changed since.

A submission is a directory below `inbox/`, or a Parquet or JSONL file directly in it. It is complete

* when it has a marker (`_READY`, `_SUCCESS`, or `job.yaml`, which also carries settings) and nothing in it is newer
  than its newest marker: upload the marker last;
* else when nothing in it was written for a quiet minute. A marker that something followed counts for nothing: tools
  that upload a whole directory take its files in any order.

Ages are differences of the bucket's own clock; no other clock is asked. What was taken is taken once: files that come
or change later are told of and never make a second job, unless a rerun is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shuntserve.errors import InvalidInput

MARKERS = frozenset({"_READY", "_SUCCESS"})
SETTINGS = "job.yaml"
SETTINGS_NAMES = frozenset({SETTINGS, "job.yml"})
ROW_SUFFIXES = (".parquet", ".pq", ".jsonl")
QUIET_S = 60.0


@dataclass(frozen=True, slots=True)
class File:
    """One object of a submission; `path` is relative to the inbox. The time is the bucket's, None if it tells none."""

    path: str
    size_bytes: int
    etag: str | None
    modified_unix_s: float | None = None

    @property
    def version(self) -> tuple[int, str | None]:
        """Equal while the content is."""
        return self.size_bytes, self.etag

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Upload:
    """What lies in the inbox under one name: the name of a directory, or a file's own."""

    name: str
    files: tuple[File, ...]

    @property
    def job_name(self) -> str:
        """The name without a file's ending."""
        stem, dot, _ = self.name.rpartition(".")
        return stem if dot and self.name.endswith(ROW_SUFFIXES) and self.files[0].path == self.name else self.name

    @property
    def rows(self) -> tuple[File, ...]:
        """The files that hold rows: all but markers, settings and whatever readers leave out."""
        return tuple(file for file in self.files if _holds_rows(file.path))

    @property
    def settings(self) -> File | None:
        """Its `job.yaml`."""
        return next((file for file in self.files if file.path in _at_top(self.name, SETTINGS_NAMES)), None)

    @property
    def markers(self) -> tuple[File, ...]:
        """Files that say it is complete."""
        top = _at_top(self.name, MARKERS | SETTINGS_NAMES)
        return tuple(file for file in self.files if file.path in top)

    @property
    def fingerprint(self) -> str:
        """Differs when any row file or the settings do."""
        counted = [*self.rows, *([self.settings] if self.settings else [])]
        text = repr(sorted((file.path, *file.version) for file in counted))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Listing:
    """The whole inbox. `strays` are files directly in it that are no submission."""

    uploads: tuple[Upload, ...]
    strays: tuple[str, ...]


def read_listing(files: Iterable[File]) -> Listing:
    """Group what an inbox holds; names that begin with `.` or `_` at its top are nobody's submission."""
    by_name: dict[str, list[File]] = {}
    strays: list[str] = []
    for file in files:
        top, below, _ = file.path.partition("/")
        if top.startswith((".", "_")):
            continue
        if below or top.endswith(ROW_SUFFIXES):
            by_name.setdefault(top, []).append(file)
        else:
            strays.append(top)
    uploads = (Upload(name, tuple(sorted(found, key=lambda one: one.path))) for name, found in sorted(by_name.items()))
    return Listing(tuple(uploads), tuple(sorted(strays)))


@dataclass(frozen=True, slots=True)
class Completeness:
    """Whether a submission may be taken, why (not), and how long until its quiet minute ends if nothing more comes."""

    complete: bool
    reason: str
    quiet_in_s: float | None = None


def completeness(upload: Upload, now_unix_s: float | None, quiet_s: float = QUIET_S) -> Completeness:
    """Judge one upload at a moment of the bucket's clock; None when it could not be read, and then markers decide."""
    newest_marker = max((_written(file) for file in upload.markers), default=None)
    newest = max(_written(file) for file in upload.files)
    if newest_marker is not None and newest <= newest_marker and upload.rows:
        return Completeness(True, "marked complete")
    if now_unix_s is None or any(file.modified_unix_s is None for file in upload.files):
        return Completeness(False, "the bucket tells no times: put a marker (_READY) when all is there")
    left_s = quiet_s - (now_unix_s - newest)
    if left_s > 0:
        return Completeness(False, "still being written", left_s)
    return Completeness(True, f"quiet for {quiet_s:g} s")


@dataclass(frozen=True, slots=True)
class Changes:
    """How an upload differs from the files a job was made of, by path."""

    late: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.late or self.changed or self.gone)

    def __str__(self) -> str:
        named = (("came later", self.late), ("changed", self.changed), ("gone", self.gone))
        return "; ".join(f"{what}: {_some(paths)}" for what, paths in named if paths)


def changes(taken: Iterable[File], upload: Upload) -> Changes:
    """What happened to a submission's row files after they were taken."""
    before = {file.path: file.version for file in taken}
    now = {file.path: file.version for file in upload.rows}
    return Changes(
        late=tuple(path for path in now if path not in before),
        changed=tuple(path for path in now if path in before and now[path] != before[path]),
        gone=tuple(path for path in before if path not in now),
    )


def rerun_salt(settings: Mapping[str, Any], settings_version: str) -> str | None:
    """The rerun that a `job.yaml` asks for: its text, or for `true` one for each version of the file. None: none."""
    match settings.get("rerun"):
        case None | False | "":
            return None
        case True:
            return f"edit-{hashlib.sha256(settings_version.encode()).hexdigest()[:12]}"
        case text:
            return str(text)


def job_settings(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a submission's job is made with: the inbox's defaults, under what its own `job.yaml` says.

    Whoever may write into the inbox may lower its cost cap, not raise it, and may not have code of a model run unless
    the inbox allows it. Raises InvalidInput.
    """
    if "input" in own:
        raise InvalidInput(f"{SETTINGS}: input", "is the submission itself", "leave it out")
    output = own.get("output")
    if isinstance(output, str) and "://" not in output and not output.startswith("/"):
        raise InvalidInput(f"{SETTINGS}: output {output!r}", "is relative to nothing", "write a whole path or URL")
    engine = own.get("engine")
    allowed = isinstance(defaults.get("engine"), Mapping) and defaults["engine"].get("trust_remote_code")
    if isinstance(engine, Mapping) and engine.get("trust_remote_code") and not allowed:
        raise InvalidInput(
            f"{SETTINGS}: engine.trust_remote_code",
            "lets whoever writes to the inbox run code",
            "set it in the inbox's own settings",
        )
    merged = dict(defaults)
    for name, value in own.items():
        before = merged.get(name)
        merged[name] = {**before, **value} if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    cap, asked = defaults.get("max_cost_usd"), own.get("max_cost_usd")
    if cap is not None and (asked is None or (isinstance(asked, int | float) and asked > cap)):
        merged["max_cost_usd"] = cap
    merged.pop("rerun", None)
    return merged


@dataclass(frozen=True, slots=True)
class Past:
    """What is known of one submission, from the names of its records alone. `number`: of the newest, None: none."""

    number: int | None = None
    has_job: bool = False
    refused: bool = False
    dealt_with: frozenset[str] = frozenset()
    """Fingerprints about which there is nothing more to say or do."""


class Step(StrEnum):
    """What a scan does about one upload."""

    NOTHING = "nothing"
    WAIT = "wait"
    TAKE = "take"
    """Fix its files in a record, and start its job."""
    CONTINUE = "continue"
    """It was taken, but its job is not known yet: start it again, which changes nothing if it was started."""
    COMPARE = "compare"
    """It has a job and looks different now: warn, or take it again if it asks for a rerun."""


def next_step(past: Past, upload: Upload, how_complete: Completeness) -> Step:
    """The next step for one upload. Exactly one job comes of it because a record's number is created once."""
    if past.number is not None and not past.has_job and not past.refused:
        return Step.CONTINUE
    if upload.fingerprint in past.dealt_with:
        return Step.NOTHING
    if not how_complete.complete:
        return Step.WAIT
    return Step.COMPARE if past.has_job else Step.TAKE


def _holds_rows(path: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.split("/")[1:])
    return not hidden and path.rpartition("/")[2] not in SETTINGS_NAMES


def _at_top(name: str, names: frozenset[str]) -> frozenset[str]:
    return frozenset(f"{name}/{one}" for one in names)


def _written(file: File) -> float:
    return float("-inf") if file.modified_unix_s is None else file.modified_unix_s


def _some(paths: tuple[str, ...], most: int = 5) -> str:
    shown = ", ".join(paths[:most])
    return shown if len(paths) <= most else f"{shown} and {len(paths) - most} more"
