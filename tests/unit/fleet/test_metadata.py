"""What an agent asks its machine's metadata endpoint, and what it makes of any answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from shuntserve.errors import InvalidInput, Unavailable
from shuntserve.fleet import imds, local_machine
from shuntserve.fleet.agent_main import NoticeWatch
from shuntserve.fleet.imds import MetadataClient, Warnings


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """The endpoint of a machine of the local fleet whose directory is `tmp_path`."""
    server = local_machine._MetadataServer(tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_quiet_machine_has_no_warnings(endpoint: str) -> None:
    """Nothing announced: 404s are an answer."""
    assert MetadataClient(endpoint).warnings() == Warnings()


def test_a_notice_and_a_recommendation_are_told(endpoint: str, tmp_path: Path) -> None:
    """Each as soon as it is there, the time of the interruption to the microsecond."""
    client = MetadataClient(endpoint)
    local_machine.recommend_rebalance(tmp_path)
    assert client.warnings() == Warnings(rebalance=True)
    before_unix_s = time.time()
    local_machine.interrupt(tmp_path, in_s=120.0)
    warnings = client.warnings()

    assert warnings.interruption_unix_s is not None
    assert 120.0 <= warnings.interruption_unix_s - before_unix_s + 1e-6 < 150.0
    assert (warnings.action, warnings.rebalance) == ("terminate", True)


def test_reads_without_a_token_are_refused(endpoint: str) -> None:
    """As an instance that allows IMDSv2 only."""
    for headers in ({}, {"X-aws-ec2-metadata-token": "guess"}):
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(endpoint + imds.ACTION_PATH, headers=headers))
        assert refused.value.code == 401


def test_a_token_that_has_run_out_is_renewed(endpoint: str) -> None:
    """The client does not notice more than one more request."""
    client = MetadataClient(endpoint)
    client.warnings()
    client._token = "of yesterday"

    assert client.warnings() == Warnings()


def answering(answers: dict[str, tuple[int, bytes]], token: tuple[int, bytes] = (200, b"token")) -> ThreadingHTTPServer:
    """An endpoint that answers so."""

    class Handler(BaseHTTPRequestHandler):
        def _say(self, answer: tuple[int, bytes]) -> None:
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        def do_PUT(self) -> None:
            self._say(token)

        def do_GET(self) -> None:
            self._say(answers.get(self.path, (404, b"")))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class names it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def action(**fields: object) -> dict[str, tuple[int, bytes]]:
    return {imds.ACTION_PATH: (200, json.dumps(fields).encode())}


@pytest.mark.parametrize(
    ("answers", "token"),
    [
        ({imds.ACTION_PATH: (200, b"<html>")}, (200, b"token")),
        ({imds.ACTION_PATH: (200, b"[]")}, (200, b"token")),
        ({imds.ACTION_PATH: (200, b"\xff\xfe")}, (200, b"token")),
        (action(action="terminate"), (200, b"token")),
        (action(action="terminate", time=None), (200, b"token")),
        (action(action="terminate", time="soon"), (200, b"token")),
        ({imds.ACTION_PATH: (500, b"")}, (200, b"token")),
        ({}, (403, b"")),
        ({}, (200, b"two\r\nlines: yes")),
        ({}, (200, "ключ".encode())),
    ],
)
def test_garbage_is_no_answer_and_no_crash(answers: dict[str, tuple[int, bytes]], token: tuple[int, bytes]) -> None:
    """Whatever comes, it is Unavailable: whoever asks keeps what it knew, and asks again."""
    server = answering(answers, token)
    try:
        with pytest.raises(Unavailable):
            MetadataClient(f"http://127.0.0.1:{server.server_address[1]}").warnings()
    finally:
        server.shutdown()
        server.server_close()


def test_ec2_writes_times_in_utc() -> None:
    """The form of the EC2 User Guide's example."""
    server = answering(action(action="terminate", time="2017-09-18T08:22:00Z"))
    try:
        warnings = MetadataClient(f"http://127.0.0.1:{server.server_address[1]}").warnings()
    finally:
        server.shutdown()
        server.server_close()

    assert warnings.interruption_unix_s == 1505722920.0


def test_silence_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, or somebody does and never answers: in a bounded time it is told."""
    monkeypatch.setattr(imds, "_TIMEOUT_S", 0.2)
    deaf = socket.create_server(("127.0.0.1", 0))
    port = deaf.getsockname()[1]
    with pytest.raises(Unavailable):
        MetadataClient(f"http://127.0.0.1:{port}").warnings()
    deaf.close()
    with pytest.raises(Unavailable):
        MetadataClient(f"http://127.0.0.1:{port}").warnings()


@pytest.mark.parametrize("text", ["169.254.169.254", "https://169.254.169.254", "http://", "file:///etc/passwd"])
def test_what_is_no_http_endpoint_is_refused(text: str) -> None:
    """Before anything is asked."""
    with pytest.raises(InvalidInput):
        MetadataClient(text)


def test_a_notice_stays_known_when_the_endpoint_falls_silent() -> None:
    """The agent's watch keeps the last answer; silence takes no notice back, and garbage ends no watch."""
    asked = threading.Semaphore(0)
    answers: list[Warnings | None] = [Warnings(), Warnings(5.0, "terminate"), None, None]

    class Client:
        def warnings(self) -> Warnings:
            asked.release()
            answer = answers.pop(0) if answers else None
            if answer is None:
                raise Unavailable("metadata endpoint", "does not answer")
            return answer

    watch = NoticeWatch(Client(), 0.001)  # type: ignore[arg-type]
    for _ in range(6):
        assert asked.acquire(timeout=10)

    assert watch.newest() == Warnings(5.0, "terminate")
