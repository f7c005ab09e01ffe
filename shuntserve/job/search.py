"""Finding chunks to claim: surveys of pages, and watches over those who hold what is left."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

from shuntserve.core.ledger import Claim, Watch
from shuntserve.core.manifest import ChunkRef
from shuntserve.errors import ShuntServeError
from shuntserve.job import claims, procedures
from shuntserve.job.worker_config import Spawner, Tolerate, WorkerConfig

REACH = 8
"""A worker takes one of the first few candidates, so that workers with one view seldom reach for the same chunk."""


class Search:
    """What is known of the job's chunks, page by page, in an order of this worker's own."""

    def __init__(
        self,
        config: WorkerConfig,
        spawner: Spawner,
        rng: random.Random,
        tolerate: Tolerate,
        incarnation: Callable[[], str],
        held: Callable[[], Collection[str]],
    ) -> None:
        self._config = config
        self._spawner = spawner
        self._rng = rng
        self._tolerate = tolerate
        self._incarnation = incarnation
        self._held = held
        self._open_pages = list(config.pages)
        rng.shuffle(self._open_pages)
        self._refs: dict[str, dict[str, ChunkRef]] = {}
        self._view: claims.PageView | None = None
        self._candidates: list[tuple[str, int]] = []
        self._holders: dict[str, str] = {}
        self._watches: dict[str, Watch | None] = {}
        self._surveying = False
        self._watching = False
        self._next_survey_s = 0.0
        self._next_watch_s = 0.0
        self._next_take_s = 0.0
        self._now_s = 0.0

    @property
    def finished(self) -> bool:
        """Every chunk of every page has been seen committed."""
        return not self._open_pages

    @property
    def busy(self) -> bool:
        """Something is being read."""
        return self._surveying or self._watching

    def go_on(self, now_s: float, *, survey: bool, watch: bool) -> None:
        """Start what is due: a survey when there is nothing to take, a look at other workers' counters."""
        self._now_s = now_s
        if survey and not self._candidates and not self._surveying and now_s >= self._next_survey_s:
            self._survey()
        if watch and not self._watching and now_s >= self._next_watch_s:
            self._watch_holders()

    def look_again(self) -> None:
        """Something has changed: the next survey need not wait."""
        self._next_survey_s = min(self._next_survey_s, self._now_s)

    def take(self) -> tuple[ChunkRef, int] | None:
        """A chunk that may be claimed, and the epoch to create."""
        while self._candidates and self._now_s >= self._next_take_s:
            chunk, epoch = self._candidates.pop(self._rng.randrange(min(len(self._candidates), REACH)))
            refs = {} if self._view is None else self._refs.get(self._view.page, {})
            if chunk in refs and chunk not in self._held():
                return refs[chunk], epoch
        return None

    def put_back(self, chunk: str, epoch: int) -> None:
        """Claiming failed for want of an answer: the same epoch is asked for again, a little later."""
        self._candidates.insert(0, (chunk, epoch))
        self._next_take_s = self._now_s + self._config.survey_interval_s / 2

    def start_over(self) -> None:
        """This worker is somebody new: what it concluded about others was seen with an older clock."""
        self._candidates.clear()
        self._watches.clear()

    def _survey(self) -> None:
        if not self._open_pages:
            return
        page = self._open_pages[0]
        self._surveying = True

        def done(found: tuple[claims.PageView, dict[str, ChunkRef]] | None, error: ShuntServeError | None) -> None:
            self._surveying = False
            self._next_survey_s = self._now_s + self._config.survey_interval_s
            if error is not None or found is None:
                self._tolerate(error, "survey")
                return
            self._view, self._refs[page] = found
            if len(self._view.committed) >= len(self._refs[page]):
                self._open_pages.remove(page)
                del self._refs[page]
                self._view = None
                self._next_survey_s = self._now_s
                return
            self._choose()
            if not self._candidates:  # nothing to take here now: look at the next page first
                self._open_pages.append(self._open_pages.pop(0))

        config = self._config
        self._spawner.spawn(
            procedures.survey_page(
                config.job_id, page, config.pages[page], config.page_sha256[page], self._refs.get(page), self._holders
            ),
            done,
        )

    def _choose(self) -> None:
        """Chunks of the surveyed page that the rules let us claim now."""
        view, rules, me = self._view, self._config.rules, self._incarnation()
        if view is None:
            return
        dead = {worker for worker, watch in self._watches.items() if rules.is_dead(watch)}
        held = self._held()
        self._candidates = []
        for chunk in self._refs.get(view.page, ()):
            if chunk in view.committed or chunk in held:
                continue
            history = view.claims.get(chunk, ())
            epoch: int | None
            if history and history[-1].worker == me and not history[-1].released:
                epoch = history[-1].epoch  # ours, but the reply was lost; acquiring it looks again
            else:
                epoch = rules.next_epoch(history, dead)
            if epoch is not None:
                self._candidates.append((chunk, epoch))

    def _foreign_holders(self) -> tuple[str, ...]:
        """Who else holds chunks of the surveyed page: a bounded number, another selection for each observer."""
        if self._view is None:
            return ()
        me, limit = self._incarnation(), self._config.watched_workers
        newest: list[Claim] = [history[-1] for history in self._view.claims.values() if history]
        workers = sorted({claim.worker for claim in newest if not claim.released and claim.worker != me})
        if len(workers) > limit:
            offset = int(me[:8], 16) % len(workers)
            workers = (workers[offset:] + workers[:offset])[:limit]
        return tuple(workers)

    def _watch_holders(self) -> None:
        workers = self._foreign_holders()
        self._watches = {worker: self._watches.get(worker) for worker in workers}
        if not workers:
            return
        self._watching = True
        asked_s, me = self._now_s, self._incarnation()

        def done(readings: dict[str, Any] | None, error: ShuntServeError | None) -> None:
            self._watching = False
            self._next_watch_s = self._now_s + self._config.rules.lease_s / 4
            if me != self._incarnation():
                return
            self._tolerate(error, "watch")
            for worker in workers:
                reading = None if readings is None else readings[worker]
                self._watches[worker] = self._config.rules.observe(self._watches.get(worker), reading, asked_s)
            self._choose()

        self._spawner.spawn(claims.read_workers(self._config.job_id, workers), done)
