"""Reading ahead: items in order, several fetched at once, a bounded number held."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(items: Iterable[T], fetch: Callable[[T], R], *, threads: int = 8, ahead: int = 16) -> Iterator[R]:
    """`fetch(item)` for each item, in order; at most `ahead` results wait. The first error ends it."""
    waiting: deque[Future[R]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        try:
            for item in source:
                waiting.append(pool.submit(fetch, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
