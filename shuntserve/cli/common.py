"""What several commands share: opening the store, the command's own log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from shuntserve.errors import InvalidInput

if TYPE_CHECKING:
    from shuntserve.store.port import Bucket


def log_file(data_dir: Path) -> TextIO:
    """Where the command's own log events go. Raises InvalidInput when it cannot be written."""
    path = data_dir / "shuntserve.jsonl"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise InvalidInput(str(path), error.strerror or "cannot be written", "set XDG_DATA_HOME") from error


def existing_store(url: str | None) -> Bucket:
    """The store to read from: the one named, which must exist, or the default."""
    from shuntserve.settings import settings
    from shuntserve.store.open import open_bucket

    return open_bucket(url or settings().store_url, mkdir=url is None)
