"""How fast the bucket is: latency and rate of its verbs on a local directory, in memory and over moto's S3.

Informational. moto's numbers are moto's (one Python process, one request at a time), useful for the cost of the
client and for spotting a change, and say nothing about S3.

    python tests/bench/store.py [--json] [--objects N]
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from shuntserve.store.s3_access import S3Options

ROOT = Path(__file__).resolve().parents[2]
SMALL, LARGE = b"x" * 300, b"x" * 4_000_000
THREADS = 8


def latencies(use: Callable[[int], object], times: int) -> dict[str, float]:
    """Median and 99th percentile of one call, in ms, and calls a second of one thread."""
    took_s = []
    for number in range(times):
        begun_s = time.perf_counter()
        use(number)
        took_s.append(time.perf_counter() - begun_s)
    return {
        "p50_ms": round(statistics.median(took_s) * 1e3, 3),
        "p99_ms": round(statistics.quantiles(took_s, n=100)[98] * 1e3, 3),
        "per_s": round(times / sum(took_s), 1),
    }


def rate(use: Callable[[int], object], times: int) -> dict[str, float]:
    """Calls a second of several threads together."""
    begun_s = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(use, range(times)))
    return {"threads": THREADS, "per_s": round(times / (time.perf_counter() - begun_s), 1)}


def measure(kind: str, bucket: Bucket, objects: int) -> Iterator[dict[str, Any]]:
    """One record for each verb."""
    large = max(objects // 50, 10)

    def key(group: str, number: int) -> str:
        return f"{group}/{number // 100:05d}/{number:08d}"

    cases: list[tuple[str, Callable[[], dict[str, float]]]] = [
        ("create 300 B, won", lambda: latencies(lambda n: bucket.create(key("a", n), SMALL), objects)),
        ("create 300 B, lost", lambda: latencies(lambda n: bucket.create(key("a", n), b"other"), objects)),
        ("create 300 B, won, threads", lambda: rate(lambda n: bucket.create(key("b", n), SMALL), objects)),
        ("put 300 B", lambda: latencies(lambda n: bucket.put("progress", SMALL), objects)),
        ("get 300 B", lambda: latencies(lambda n: bucket.get(key("a", n)), objects)),
        ("get 300 B, threads", lambda: rate(lambda n: bucket.get(key("a", n)), objects)),
        ("head", lambda: latencies(lambda n: bucket.head(key("a", n)), objects)),
        ("head, absent", lambda: latencies(lambda n: bucket.head(key("none", n)), objects)),
        ("create 4 MB", lambda: latencies(lambda n: bucket.create(key("large", n), LARGE), large)),
        ("get 4 MB", lambda: latencies(lambda n: bucket.get(key("large", n)), large)),
        (f"list {objects} objects", lambda: latencies(lambda n: list(bucket.list("a")), 5)),
        (f"list_dirs {objects // 100} directories", lambda: latencies(lambda n: bucket.list_dirs("a"), 5)),
    ]
    for case, run in cases:
        yield {"bench": "store", "bucket": kind, "case": case, **run()}


@contextmanager
def moto() -> Iterator[Bucket]:
    """A bucket on moto's S3 in a process of its own."""
    command = [sys.executable, "-m", "tests.conformance.s3_server"]
    server = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        endpoint_url = server.stdout.readline().strip()
        keys = S3Options(endpoint_url=endpoint_url, region="us-east-1", access_key_id="a", secret_access_key="b")
        yield open_bucket("s3://bench", s3=keys)
    finally:
        server.communicate("")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--objects", type=int, default=1000, help="objects of each group (default 1000)")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)

    with tempfile.TemporaryDirectory() as directory, moto() as s3:
        buckets = [
            ("local", open_bucket(directory)),
            ("memory", open_bucket(f"memory://{uuid.uuid4().hex}")),
            ("moto", s3),
        ]
        for kind, bucket in buckets:
            for record in measure(kind, bucket, arguments.objects):
                if arguments.json:
                    print(json.dumps(record), flush=True)
                else:
                    numbers = "  ".join(f"{name} {value:,}" for name, value in list(record.items())[3:])
                    print(f"{record['bucket']:7} {record['case']:32} {numbers}", flush=True)


if __name__ == "__main__":
    main()
