"""A node's part in a pipeline that stands on several nodes.

The first stage's node leads: it runs an ordinary worker, whose engine waits for the others, and says where to meet. The
others run their stages in a node process for each generation of the engine: one that ends is followed by the next
as soon as its leader has published another meeting place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from shuntserve import telemetry
from shuntserve.core.desired import Pipeline
from shuntserve.core.rendezvous import Rendezvous
from shuntserve.core.topology import PipelineTopology, StageShape
from shuntserve.engine.launch import NodeProcess
from shuntserve.engine.node import Exit
from shuntserve.errors import InvalidInput, NotFound, ShuntServeError, Unavailable
from shuntserve.job.local import LocalWorkers
from shuntserve.store.port import Bucket

_LOOK_S = 1.0
MOST_FAILURES = 3
"""A node process that failed so often in a row is not started again: the node says why."""


def topology_of(pipeline: Pipeline) -> PipelineTopology:
    """The ranks of a pipeline, node by node. Raises InvalidInput when its stages do not say their layers."""
    stages: list[StageShape] = []
    ranks = dict.fromkeys(pipeline.nodes, 0)
    for place in pipeline.stages:
        if place.layers is None or place.tp < 1:
            raise InvalidInput(f"pipeline {pipeline.id}", "has a stage without layers", "give tp and layers of each")
        stages.append(StageShape(place.tp, *place.layers))
        ranks[place.node] += place.tp
    return PipelineTopology(tuple(stages), tuple(ranks.values()))


class LeadingWorkers(LocalWorkers):
    """The leader's worker; whenever its engine is ready to be joined, everybody can read where."""

    def publish_from(self, path: Path, bucket: Bucket, key: str) -> LeadingWorkers:
        """`path` is where the engine writes its meeting place, `key` where the other nodes look."""
        self._meeting = (path, bucket, key)
        self._published = b""
        path.unlink(missing_ok=True)  # of an earlier life of this node
        return self

    def tick(self, now_s: float) -> None:
        """As every worker's, and publish what is new."""
        super().tick(now_s)
        path, bucket, key = self._meeting
        with contextlib.suppress(FileNotFoundError):
            body = path.read_bytes()
            if body != self._published:
                try:
                    bucket.put(key, body)
                    self._published = body
                except Unavailable as error:  # the next tick tries again
                    telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, what="rendezvous", error=str(error))


class FollowingNode:
    """This node's ranks of a pipeline led from elsewhere, generation after generation. Advanced by `tick`."""

    def __init__(self, bucket: Bucket, key: str, start: Callable[[Rendezvous], NodeProcess]) -> None:
        self._bucket = bucket
        self._key = key
        self._start = start
        self._process: NodeProcess | None = None
        self._joined: str | None = None
        self._draining = False
        self._failed_in_a_row = 0
        self._failure: ShuntServeError | None = None
        self._next_look_s = 0.0

    @property
    def running(self) -> int:
        """1 while a node process lives."""
        return int(self._process is not None)

    @property
    def finished(self) -> bool:
        """No process runs, and none will."""
        return self._process is None and (self._draining or self._failure is not None)

    @property
    def failures(self) -> tuple[ShuntServeError, ...]:
        """Why its ranks cannot run here."""
        return () if self._failure is None else (self._failure,)

    @property
    def all_failed(self) -> bool:
        """They cannot."""
        return self._failure is not None

    def tick(self, now_s: float) -> None:
        """Bury what has ended; join what is new."""
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + _LOOK_S
        if self._process is not None:
            status = self._process.exit_status()
            if status is None:
                return
            self._note_end(self._process, status)
        if self._draining or self._failure is not None:
            return
        try:
            meeting = Rendezvous.from_json(self._bucket.get(self._key))
        except NotFound:
            return
        except Unavailable as error:
            telemetry.emit(telemetry.Event.STORE_UNAVAILABLE, what="rendezvous", error=str(error))
            return
        if meeting.generation != self._joined:
            self._joined = meeting.generation
            self._process = self._start(meeting)
            self._process.start()

    def _note_end(self, process: NodeProcess, status: int) -> None:
        process.stop()
        self._process = None
        telemetry.emit(telemetry.Event.WORKER_EXITED, generation=self._joined, status=status)
        self._failed_in_a_row = self._failed_in_a_row + 1 if status == Exit.FAILED else 0
        if self._failed_in_a_row >= MOST_FAILURES:
            self._failure = Unavailable("stage", "failed several times in a row", f"see {process.log_path}")

    def flush(self) -> None:
        """The leader's worker checkpoints; there is nothing here."""

    def drain(self) -> None:
        """Join nothing more. The process ends with its generation, which the leader ends when it has drained."""
        self._draining = True

    def kill(self) -> None:
        """End the process at once; the leader notices."""
        self._draining = True
        self.end()

    def end(self) -> None:
        """Leave nothing behind."""
        if self._process is not None:
            self._process.stop()
            self._process = None
