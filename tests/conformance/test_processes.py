"""What holds between processes: one winner of a create, and nothing broken by a SIGKILL in the middle of a write."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from shuntserve.store.open import open_bucket

RACER = """
import json, sys
from shuntserve.store.open import open_bucket

url, seat, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
bucket = open_bucket(url)
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([bucket.create(f"race/{n}", seat.encode()) for n in range(rounds)]))
"""

WRITER = """
import hashlib, random, sys
from shuntserve.store.open import open_bucket

def whole(seed):
    body = random.Random(seed).randbytes(1_500_000)
    return hashlib.sha256(body).digest() + body

bucket = open_bucket(sys.argv[1])
bodies = {n: whole(n) for n in range(4)}
print("ready", flush=True)
for n in range(10_000):
    assert bucket.create(f"created/{n:05d}", bodies[n % 4]), "lost a create to itself"
    bucket.put("overwritten", bodies[n % 4])
"""


def spawn(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_until_ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"


def test_of_several_processes_exactly_one_creates(shared_url: str) -> None:
    """Of three processes that create the same keys at once, each key has one winner, whose bytes are stored."""
    rounds, seats = 60, ("one", "two", "three")
    racers = [spawn(RACER, shared_url, seat, str(rounds)) for seat in seats]
    for racer in racers:
        wait_until_ready(racer)

    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]

    bucket = open_bucket(shared_url)
    for number in range(rounds):
        winners = [seat for seat, wins in zip(seats, won, strict=True) if wins[number]]
        assert len(winners) == 1
        assert bucket.get(f"race/{number}") == winners[0].encode()


def test_sigkill_in_the_middle_of_writes_leaves_only_whole_objects(tmp_path: Path) -> None:
    """A process killed while it creates and overwrites leaves each object whole or absent; the next one carries on."""
    chance = random.Random(2)
    bucket = open_bucket(tmp_path)
    seen = 0
    for _ in range(6):
        writer = spawn(WRITER, str(tmp_path))
        wait_until_ready(writer)
        time.sleep(chance.uniform(0.005, 0.1))
        assert writer.poll() is None, "it could not repeat its own creates"
        writer.send_signal(signal.SIGKILL)
        writer.communicate()

        for info in bucket.list(""):
            body = bucket.get(info.key)
            assert hashlib.sha256(body[32:]).digest() == body[:32]
            assert len(body) == info.size_bytes == 1_500_032
        seen = max(seen, len(list(bucket.list("created"))))
    assert seen > 0


def test_what_a_killed_writer_left_half_written_is_invisible(tmp_path: Path) -> None:
    """The staging file of a write that never finished is in no listing, and stops no later write of that key."""
    bucket = open_bucket(tmp_path)
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "000001#1").write_bytes(b"half")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "leftover#1").write_bytes(b"half")

    assert list(bucket.list("")) == []
    assert list(bucket.list_dirs("")) == []
    assert bucket.head("claims/000001") is None
    assert bucket.create("claims/000001", b"whole")
    bucket.put("claims/000001", b"whole again")
    assert [info.key for info in bucket.list("claims")] == ["claims/000001"]
    assert bucket.get("claims/000001") == b"whole again"
