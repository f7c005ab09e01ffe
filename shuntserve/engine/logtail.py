"""The last error in an engine's log: the cause a person looks for first. Shown, never used to decide anything."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TAIL_BYTES = 64 * 1024
_MAX_CHARS = 500
_ERROR_LINE = re.compile(rb"(?:^|[\s\]])((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception)): (.+)$")
_SYMPTOMS = (b"EngineDeadError", b"EngineGenerateError", b"CancelledError", b"Engine core initialization failed")
"""What the frontend says once its core is gone: true, but not the cause."""


def last_error(log_path: Path) -> str | None:
    """The last line of the log's tail that names an exception, shortened; None when there is none."""
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        found = _ERROR_LINE.search(line)
        if found and not any(symptom in line for symptom in _SYMPTOMS):
            return shortened(f"{found[1].decode()}: {found[2].decode(errors='replace')}")
    return None


def with_cause(detail: str, log_path: Path) -> str:
    """`detail` and the cause that the log knows, each said once; what is only a symptom gives way to the cause."""
    cause = last_error(log_path)
    if cause is None or cause.partition(": ")[2].removesuffix("…") in detail:
        return detail
    if any(symptom.decode() in detail for symptom in _SYMPTOMS):
        return cause
    return f"{detail}: {cause}"


def shortened(message: str) -> str:
    """On one line, and not longer than anybody reads."""
    line = " ".join(message.split())
    return line if len(line) <= _MAX_CHARS else line[: _MAX_CHARS - 1] + "…"
