"""What several commands share: their usual options, opening the store, the command's own log, where tables go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from shuntserve.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import Console

    from shuntserve.store.port import Bucket

Store = Annotated[
    str | None,
    typer.Option("--store", help="Where jobs are kept: a directory or s3:// URL. Default: $SHUNTSERVE_STORE."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `shuntserve list` shows it.")]

_PIPED_WIDTH = 400
"""A program or a file that reads a table is given whole lines."""


def console() -> Console:
    """Standard output for tables."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


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
