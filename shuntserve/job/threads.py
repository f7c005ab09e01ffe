"""Runs a worker's procedures on threads."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from shuntserve.errors import ShuntServeError
from shuntserve.job import ops
from shuntserve.job.ops import Procedure
from shuntserve.store.port import Bucket

Done = Callable[[Any, ShuntServeError | None], None]


class ThreadSpawner:
    """Procedures on a small pool; `deliver` hands their outcomes to the loop's thread.

    A procedure that ends with anything but a `ShuntServeError` is a bug: `deliver` raises it, and the worker dies
    with its trace.
    """

    def __init__(self, bucket: Bucket, threads: int = 8) -> None:
        self._bucket = bucket
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bucket")
        self._ended: queue.SimpleQueue[tuple[Done, Future[Any]]] = queue.SimpleQueue()

    def spawn(self, procedure: Procedure[Any], done: Done) -> None:
        future = self._pool.submit(ops.run, self._bucket, procedure)
        future.add_done_callback(lambda ended: self._ended.put((done, ended)))

    def deliver(self) -> None:
        while True:
            try:
                done, future = self._ended.get_nowait()
            except queue.Empty:
                return
            error = future.exception()
            if error is None:
                done(future.result(), None)
            elif isinstance(error, ShuntServeError):
                done(None, error)
            else:
                raise error

    def close(self) -> None:
        """Forget what has not begun; what is under way ends with the process."""
        self._pool.shutdown(wait=False, cancel_futures=True)
