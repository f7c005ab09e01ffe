"""`make demo`: every promise kept when it is left alone, and nothing left of it when it is not."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shuntserve.cli.demo_site import marked

pytestmark = [pytest.mark.soak, pytest.mark.vllm, pytest.mark.timeout(900)]


def start(directory: Path) -> subprocess.Popen[str]:
    """The demonstration in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "shuntserve.cli.demo", f"--directory={directory / 'demo'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        start_new_session=True,
    )


def modules(directory: Path) -> set[str]:
    """Which of its programs run."""
    words: set[str] = set()
    for process in marked(directory / "demo"):
        with contextlib.suppress(psutil.Error):
            words.update(process.cmdline())
    return {word.rpartition(".")[2] for word in words if word.startswith("shuntserve.")}


def test_the_demo_keeps_every_promise(tmp_path: Path) -> None:
    """Left alone it exits with 0, its summary and its report are there, and no process is left."""
    child = start(tmp_path)

    out, _ = child.communicate(timeout=600)

    assert child.returncode == 0, out
    summary = json.loads((tmp_path / "demo/summary.json").read_text())
    assert summary["duplicates"] == summary["missing"] == summary["texts_differing"] == 0
    assert summary["interruptions"] >= 2
    assert summary["tokens_kept"] > 0
    assert "<svg" in (tmp_path / "demo/report.html").read_text()
    assert marked(tmp_path / "demo") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("reached", ["aws_server", "engine"])
def test_whatever_ends_the_demo_ends_all_of_it(tmp_path: Path, number: signal.Signals, reached: str) -> None:
    """Ctrl-C, SIGTERM or SIGKILL while it starts, or while engines run: within seconds nothing of it is left."""
    child = start(tmp_path)
    running: Callable[[], bool] = (
        (lambda: "host" in modules(tmp_path)) if reached == "engine" else (lambda: bool(modules(tmp_path)))
    )
    _until(running, 300.0)

    child.send_signal(number)
    child.wait(60)

    _until(lambda: not marked(tmp_path / "demo"), 60.0)
    assert child.returncode != 0


def _until(reached: Callable[[], bool], within_s: float) -> None:
    give_up_s = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < give_up_s, f"not within {within_s:.0f} s"
        time.sleep(0.2)
