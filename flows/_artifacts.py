"""A job's artifacts in Prefect, with keys by job name: a new run of the job adds a version to each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from flows import _tables
from flows._outages import if_reachable


class Artifacts:
    """Makes them and keeps those that change up to date in place. A Prefect server that is away costs nothing but an
    update."""

    def __init__(self, job_name: str) -> None:
        self._name = job_name
        self._progress: UUID | None = None
        self._shown: dict[str, list[dict[str, Any]]] = {}
        self._tables: dict[str, UUID] = {}
        self._told: tuple[float, str] | None = None

    def watched(self, status: Mapping[str, Any]) -> None:
        """Progress, plan, cost and interruptions as they are now."""
        self.progress(status)
        self.table("plan", _tables.plan_rows(status), "Planned, and the machines there are")
        self.table("cost", _tables.cost_rows(status), "Dollars")
        self.table("interruptions", _tables.interruption_rows(status), "Interruptions, in order")

    def progress(self, status: Mapping[str, Any]) -> None:
        share, text = _tables.percent(status), _tables.progress_text(status)
        if self._told == (share, text):
            return
        if self._progress is None:
            key = _tables.artifact_key(self._name, "progress")
            self._progress = if_reachable(
                lambda: cast("UUID", create_progress_artifact(share, key=key, description=text))
            )
        else:
            artifact = self._progress
            if_reachable(lambda: update_progress_artifact(artifact, progress=share, description=text))
        self._told = (share, text)

    def table(self, what: str, rows: list[dict[str, Any]], description: str) -> None:
        """A table, made when it first has rows and then changed in place."""
        if not rows or self._shown.get(what) == rows:
            return
        artifact = self._tables.get(what)
        if artifact is None:
            key = _tables.artifact_key(self._name, what)
            made = if_reachable(lambda: cast("UUID", create_table_artifact(rows, key=key, description=description)))
            if made is not None:
                self._tables[what] = made
        else:
            if_reachable(lambda: _update_table(artifact, rows))
        self._shown[what] = rows

    def ended(
        self, status: Mapping[str, Any], report: Mapping[str, Any] | None, rejects: Callable[[], list[dict[str, Any]]]
    ) -> None:
        """What is made once, at the end: rejects, report, the way to the output."""
        self.watched(status)
        if status["rows"].get("rejected"):
            self.table("rejects", rejects(), "Rows without an answer, by reason")
        text = _tables.report_text(status, report)
        key = _tables.artifact_key(self._name, "report")
        if_reachable(lambda: create_markdown_artifact(text, key=key, description=f"Job {status['id']}"))
        link = _tables.artifact_key(self._name, "output")
        if_reachable(lambda: create_link_artifact(status["output"], link_text=status["output"], key=link))


def _update_table(artifact: UUID, rows: list[dict[str, Any]]) -> None:
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact, ArtifactUpdate(data=json.dumps(rows)))
