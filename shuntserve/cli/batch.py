"""Commands of batch jobs: run, list, status, rows, cancel."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the batch commands."""
