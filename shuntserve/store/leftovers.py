"""Clearing away what writers that were killed left half-written in a local directory.

A write goes to `name#1` (or #2, …) first and is then linked to `name`; a SIGKILL in between leaves the staging file.
The bucket never lists it, but other programs that read the directory (a Parquet reader given `data/`) would. S3 and
memory have no such files.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shuntserve.store.key_rules import check_prefix, is_staged
from shuntserve.store.port import Bucket


def remove_leftovers(bucket: Bucket, prefix: str = "", *, now_s: float, older_than_s: float = 3600.0) -> int:
    """Remove staging files under `prefix` last written `older_than_s` before `now_s` (the epoch's clock); how many.

    A writer that is alive after all loses nothing: its create finds the staging file gone, reads back and tries
    again; its put raises Unavailable. Files that cannot be removed stay.
    """
    check_prefix(bucket.url, prefix)
    parts = urlsplit(bucket.url)
    if parts.scheme != "file":
        return 0
    removed = 0
    for directory, _, names in os.walk(Path(unquote(parts.path)) / prefix):
        for name in filter(is_staged, names):
            path = Path(directory, name)
            with contextlib.suppress(OSError):
                if path.stat().st_mtime <= now_s - older_than_s:
                    path.unlink()
                    removed += 1
    return removed
