"""A machine of the local fleet: a process with a metadata endpoint on loopback, and a node agent under it.

    python -m shuntserve.fleet.local_machine DIRECTORY

It behaves as an EC2 spot instance does. Its agent is started again when it dies (as systemd would), the machine ends
when the agent leaves in order (shutdown terminates), and an interruption or SIGTERM ends it whatever still runs. What
belongs to it is in its directory:

    config.json       what to run, written by who launched it
    lock              held as long as the machine runs, so that one launch is one machine
    machine.json      where it is: process, metadata endpoint
    spending.json     the spending lease as its agent knows it
    notice.json       an interruption or a rebalance recommendation, written by `interrupt` and `recommend_rebalance`
    ended             it has ended and never starts again
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from shuntserve.fleet import imds
from shuntserve.job import machine

_TICK_S = 0.1
_RESTART_AFTER_S = 1.0
_MOST_QUICK_DEATHS = 5
_QUICK_S = 10.0
_LOCK_TRIES = 10
_KILL_AFTER_S = 45.0
"""After SIGTERM the agent has this long to make everything durable."""


def interrupt(directory: Path, in_s: float) -> None:
    """Announce that the machine will be taken in so many seconds, as EC2 does two minutes ahead."""
    _note(directory, {"action": "terminate", "unix_s": time.time() + in_s})


def recommend_rebalance(directory: Path) -> None:
    """Say that the machine is at elevated risk of being taken."""
    _note(directory, {"rebalance_unix_s": time.time()})


def _note(directory: Path, news: Mapping[str, object]) -> None:
    path = directory / "notice.json"
    told = {**_json(path), **news}
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(told), encoding="utf-8")
    fresh.replace(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value


def is_running(directory: Path) -> bool:
    """Whether somebody holds the machine's lock."""
    with contextlib.suppress(FileNotFoundError), (directory / "lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def where(directory: Path) -> int | None:
    """The machine's process, if it has ever started."""
    pid = _json(directory / "machine.json").get("pid")
    return None if pid is None else int(pid)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    with (directory / "lock").open("ab") as file:
        for _ in range(_LOCK_TRIES):  # who asks `is_running` holds it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_TICK_S / 2)
            else:
                yield True
                return
        yield False


class _Metadata(BaseHTTPRequestHandler):
    """The endpoint. `server.directory` and `server.token` belong to the machine."""

    server: _MetadataServer

    def do_PUT(self) -> None:
        if self.path == imds.TOKEN_PATH and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            self._answer(HTTPStatus.OK, self.server.token)
        else:
            self._answer(HTTPStatus.BAD_REQUEST, "")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != self.server.token:
            self._answer(HTTPStatus.UNAUTHORIZED, "")
            return
        notice = _json(self.server.directory / "notice.json")
        if self.path == imds.ACTION_PATH and "unix_s" in notice:
            body = {"action": notice["action"], "time": _utc(notice["unix_s"])}
            self._answer(HTTPStatus.OK, json.dumps(body))
        elif self.path == imds.ADDRESS_PATH:
            self._answer(HTTPStatus.OK, "127.0.0.1")
        elif self.path == imds.REBALANCE_PATH and "rebalance_unix_s" in notice:
            self._answer(HTTPStatus.OK, json.dumps({"noticeTime": _utc(notice["rebalance_unix_s"])}))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "")

    def _answer(self, status: HTTPStatus, body: str) -> None:
        payload = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class names it so
        """Nothing: it is asked every few seconds."""


class _MetadataServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Metadata)
        self.directory = directory
        self.token = secrets.token_urlsafe(24)


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class LocalMachine:
    """The machine's life: agent started, started again, ended. Advanced by `tick`."""

    def __init__(self, directory: Path, endpoint: str) -> None:
        config = _json(directory / "config.json")
        self._directory = directory
        memory = str(directory / "spending.json")
        own = ["--metadata", endpoint, "--parent", str(os.getpid()), "--memory", memory]
        self._command = [*config["command"], *own]
        self._environment = {**os.environ, **config["environment"]}
        self._agent: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._quick_deaths = 0
        self._off_at_s: float | None = None

    def power_off(self, now_s: float) -> None:
        """The button: the agent may drain for a while."""
        if self._off_at_s is None:
            self._off_at_s = now_s + _KILL_AFTER_S
            if self._agent is not None:
                self._agent.send_signal(signal.SIGTERM)

    def tick(self, now_s: float, now_unix_s: float) -> bool:
        """Advance; False when the machine has ended."""
        taken_unix_s = _json(self._directory / "notice.json").get("unix_s")
        if taken_unix_s is not None and now_unix_s >= taken_unix_s:
            return False
        if self._off_at_s is not None and now_s >= self._off_at_s:
            return False
        if self._agent is not None:
            status = self._agent.poll()
            if status is None:
                return True
            self._agent = None
            if status == 0 or self._off_at_s is not None:
                return False
            self._quick_deaths = self._quick_deaths + 1 if now_s - self._started_s < _QUICK_S else 0
        if self._quick_deaths >= _MOST_QUICK_DEATHS or self._off_at_s is not None:
            return False
        if now_s >= self._started_s + _RESTART_AFTER_S:
            self._start(now_s)
        return True

    def _start(self, now_s: float) -> None:
        with (self._directory / "agent.jsonl").open("ab") as log:
            self._agent = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment,
            )
        self._started_s = now_s


def _kill_tree() -> None:
    """Everything below this process, at once: the power is off."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def main() -> int:
    """Run the machine in the directory named on the command line to its end."""
    directory = Path(sys.argv[1])
    with _locked(directory) as mine:
        if not mine or (directory / "ended").exists():
            return 0
        server = _MetadataServer(directory)
        threading.Thread(target=server.serve_forever, name="metadata", daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        here = {"place": machine.place(), "pid": os.getpid(), "started_unix_s": time.time(), "metadata": endpoint}
        (directory / "machine.json").write_text(json.dumps(here), encoding="utf-8")
        one = LocalMachine(directory, endpoint)
        off = threading.Event()
        signal.signal(signal.SIGTERM, lambda number, frame: off.set())
        signal.signal(signal.SIGINT, lambda number, frame: off.set())
        try:
            while one.tick(time.monotonic(), time.time()):
                # `ended` as well: who terminates a machine that has just begun does not know its process yet.
                if off.wait(_TICK_S) or (directory / "ended").exists():
                    one.power_off(time.monotonic())
                    time.sleep(_TICK_S)
        finally:
            _kill_tree()
            (directory / "ended").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
