"""What a job's objects say of its progress: read again and again, cheaply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shuntserve.core.manifest import Manifest
from shuntserve.errors import NotFound
from shuntserve.job import claims, ops, procedures
from shuntserve.job.prefetch import prefetched
from shuntserve.store import keys
from shuntserve.store.port import Bucket

KILLED = "killed"
"""The fact `ended` of a worker that was found dead, as against one that signed off."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One incarnation of a worker as it last told of itself."""

    incarnation: str
    progress: int
    gone: bool
    facts: Mapping[str, Any]

    def count(self, name: str) -> int:
        """One of its counters (`job.worker.Counters`)."""
        return int(self.facts.get(name) or 0)

    @property
    def killed(self) -> bool:
        """It ended without signing off."""
        return self.facts.get("ended") == KILLED

    @property
    def state(self) -> str:
        return KILLED if self.killed else "gone" if self.gone else str(self.facts.get("state", "starting"))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job's progress at one moment. Sums over workers are as of their last reports, seconds ago at most."""

    rows_in: int
    rows_ended: int
    """Rows of committed chunks and rows ingest refused, and those finished in open chunks."""
    rows_refused: int
    """Of them, those that ingest refused."""
    chunks: int
    chunks_committed: int
    workers: tuple[WorkerView, ...]

    @property
    def complete(self) -> bool:
        """Every chunk is committed."""
        return self.chunks_committed >= self.chunks

    @property
    def live(self) -> tuple[WorkerView, ...]:
        """Workers that have not ended, as far as anybody has noticed."""
        return tuple(worker for worker in self.workers if not worker.gone)

    def total(self, counter: str) -> int:
        """A counter's sum over all incarnations there ever were."""
        return sum(worker.count(counter) for worker in self.workers)

    @property
    def rejected(self) -> int:
        """Rows rejected so far."""
        return self.rows_refused + self.total("rows_rejected")

    @property
    def interruptions(self) -> int:
        """Workers found dead, and engines lost under a living worker."""
        engines = sum(self.total(kind) for kind in ("crashed", "hung", "killed"))
        return engines + sum(worker.killed for worker in self.workers)

    @property
    def tokens_regenerated(self) -> int:
        """Tokens that were generated and lost before they were durable, as far as their workers could still report."""
        return sum(max(0, worker.count("tokens_generated") - worker.count("tokens_durable")) for worker in self.workers)


@dataclass(slots=True)
class _Page:
    rows: Mapping[str, int]
    committed: set[str] = field(default_factory=set)

    @property
    def closed(self) -> bool:
        return len(self.committed) >= len(self.rows)


class Watcher:
    """Takes snapshots. A closed page is never listed again, the object of a worker that is gone never read again."""

    def __init__(self, bucket: Bucket, job_id: str, manifest: Manifest) -> None:
        self._bucket = bucket
        self._job_id = job_id
        self._manifest = manifest
        self._pages: dict[str, _Page] = {}
        self._gone: dict[str, WorkerView] = {}

    def snapshot(self) -> Snapshot:
        """Read what has changed. Raises what the bucket raises; the next call carries on."""
        self._look_at_results()
        workers = self._look_at_workers()
        committed_rows = sum(page.rows[chunk] for page in self._pages.values() for chunk in page.committed)
        open_rows = sum(worker.count("rows_finished_open") for worker in workers if not worker.gone)
        rows_valid = self._manifest.rows_valid
        return Snapshot(
            rows_in=self._manifest.rows_in,
            rows_ended=self._manifest.rows_rejected + min(rows_valid, committed_rows + open_rows),
            rows_refused=self._manifest.rows_rejected,
            chunks=self._manifest.chunks,
            chunks_committed=sum(len(page.committed) for page in self._pages.values()),
            workers=workers,
        )

    def _look_at_results(self) -> None:
        for ref in self._manifest.pages:
            page = self._pages.get(ref.page)
            if page is not None and page.closed:
                continue
            listed = [info.key for info in self._bucket.list(keys.results_page(self._job_id, ref.page))]
            if not listed:
                continue
            if page is None:
                chunks = ops.run(self._bucket, procedures.read_page(ref.key, ref.sha256))
                page = self._pages[ref.page] = _Page({chunk: one.rows for chunk, one in chunks.items()})
            page.committed = {key.rsplit("/", 1)[1].removesuffix(".parquet") for key in listed}

    def _look_at_workers(self) -> tuple[WorkerView, ...]:
        views: list[WorkerView] = []
        listed = self._bucket.list(keys.workers(self._job_id))
        names = [info.key.rsplit("/", 1)[1].removesuffix(".json") for info in listed]
        unknown = [name for name in names if name not in self._gone]
        read = prefetched(unknown, lambda name: read_worker(self._bucket, self._job_id, name), threads=16, ahead=64)
        fresh = dict(zip(unknown, read, strict=True))
        for incarnation in names:
            view = self._gone.get(incarnation) or fresh.get(incarnation)
            if view is None:
                continue
            if view.gone:
                self._gone[incarnation] = view
            views.append(view)
        return tuple(views)


def read_worker(bucket: Bucket, job_id: str, incarnation: str) -> WorkerView | None:
    """What a worker last told of itself; None when it never did."""
    key = keys.worker(job_id, incarnation)
    try:
        value = claims.load(key, bucket.get(key))
    except NotFound:
        return None
    return WorkerView(incarnation, value["progress"], value["gone"], value["facts"])


def bury(bucket: Bucket, job_id: str, incarnation: str) -> WorkerView | None:
    """Declare a worker dead whose process is known to have ended, so that its chunks are free at once.

    Only for who reaped the process, or has seen that it is gone. Returns its last report; None when it never worked.
    A worker that signed off is left as it is.
    """
    view = read_worker(bucket, job_id, incarnation)
    if view is None or view.gone:
        return view
    facts = {**view.facts, "ended": KILLED}
    bucket.put(keys.worker(job_id, incarnation), claims.worker_body(incarnation, view.progress, gone=True, facts=facts))
    return WorkerView(incarnation, view.progress, True, facts)
