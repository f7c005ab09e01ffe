"""The logs of one job's processes on this machine, as one stream in the order in which things happened.

Workers, agents, the controller and the commands each write JSON lines into files of their own; nothing here writes.
Lines that are no events (a traceback, say) belong to the event before them.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

COMMAND_LOG = "shuntserve.jsonl"
_MOST_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LogLine:
    """One event, or (`event` empty) the text that followed one. `source` names the process's log."""

    time: str
    """ISO 8601 in UTC, so that the order of the texts is that of the moments."""
    source: str
    level: str = ""
    event: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


def find_logs(data_dir: Path, job_id: str) -> dict[Path, str]:
    """Log files of the job and what to call each: `worker-0`, `NODE/worker-0`, `agent NODE`, `controller`,
    `command`."""
    found: dict[Path, str] = {}
    if job_id in ("", ".", "..") or "/" in job_id:
        return found
    root = data_dir / "logs" / job_id
    for path in sorted(root.rglob("*.jsonl")):
        inside = path.relative_to(root)
        name = inside.parent if path.stem == "worker" else inside.with_suffix("")
        found[path] = name.as_posix()
    for path in sorted(data_dir.glob(f"machines/*/{_plain(job_id)}/*/agent.jsonl")):
        found[path] = f"agent {path.parent.name}"
    command = data_dir / COMMAND_LOG
    if command.is_file():
        found[command] = "command"
    return found


def _plain(name: str) -> str:
    """A name in which no character stands for others."""
    return "".join(f"[{one}]" if one in "*?[" else one for one in name)


class LogReader:
    """Reads what has been added to a job's logs since the last call; finds new files by itself."""

    def __init__(self, data_dir: Path, job_id: str) -> None:
        self._data_dir = data_dir
        self._job_id = job_id
        self._tails: dict[Path, _Tail] = {}

    @property
    def sources(self) -> tuple[str, ...]:
        """The logs that are known."""
        return tuple(tail.source for tail in self._tails.values())

    def read(self) -> Iterator[LogLine]:
        """New lines of all files, merged by time. Holds one line of each file at a time."""
        for path, source in find_logs(self._data_dir, self._job_id).items():
            if path not in self._tails:
                # The commands' log holds events of all jobs.
                self._tails[path] = _Tail(path, source, self._job_id if path.name == COMMAND_LOG else None)
        return heapq.merge(*(tail.read() for tail in self._tails.values()), key=lambda line: line.time)


class _Tail:
    """One file, read on from where it was left. An unfinished last line waits for its end."""

    def __init__(self, path: Path, source: str, only_job: str | None) -> None:
        self._path = path
        self.source = source
        self._only_job = only_job
        self._offset = 0
        self._time = ""
        self._mine = only_job is None

    def read(self) -> Iterator[LogLine]:
        try:
            file = self._path.open("rb")
        except OSError:  # taken away meanwhile
            return
        with file:
            if file.seek(0, 2) < self._offset:  # began anew
                self._offset = 0
            file.seek(self._offset)
            for raw in _whole_lines(file):
                self._offset += len(raw)
                line = self._parse(raw)
                if line is not None:
                    yield line

    def _parse(self, raw: bytes) -> LogLine | None:
        text = raw.decode(errors="replace").rstrip("\n")
        try:
            value = json.loads(text)
            fields = {name: value[name] for name in value if name not in ("time", "level", "event")}
            line = LogLine(str(value["time"]), self.source, str(value["level"]), str(value["event"]), fields)
        except (ValueError, KeyError, TypeError):
            return LogLine(self._time, self.source, text=text) if self._mine and text.strip() else None
        self._time = line.time
        self._mine = self._only_job is None or fields.get("job") == self._only_job
        return line if self._mine else None


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    while raw := file.readline(_MOST_LINE_BYTES):
        if not raw.endswith(b"\n") and len(raw) < _MOST_LINE_BYTES:
            return
        yield raw


LEVELS = ("debug", "info", "warning", "error")


def wanted(lines: Iterable[LogLine], least_level: str, events: Iterable[str] = ()) -> Iterator[LogLine]:
    """Those of at least this level and, if any are named, of these events; text goes with the event before it."""
    names, least = frozenset(events), LEVELS.index(least_level)
    shown: dict[str, bool] = {}
    for line in lines:
        if line.event:
            level = LEVELS.index(line.level) if line.level in LEVELS else len(LEVELS)
            shown[line.source] = level >= least and (not names or line.event in names)
        if shown.get(line.source, not names):
            yield line
