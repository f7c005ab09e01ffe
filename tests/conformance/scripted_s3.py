"""An S3 server that misbehaves on cue: what a network and a busy service do to single requests.

It keeps objects as S3 does (conditional puts are atomic, reads see every finished write) and follows a script: each
request of a method takes the next act meant for that method, and requests beyond the script are served well.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from shuntserve.store.s3_access import S3Options

BUCKET = "scripted"


class Reply(Enum):
    """What the client hears of a request."""

    TRUE = "what happened"
    NONE = "nothing: the connection closes"
    SILENCE = "nothing, and the connection stays open"


@dataclass(frozen=True, slots=True)
class Act:
    """How one request goes.

    `effect`: whether it does what it asks. `reply`: what the client hears; `status` and `code` instead of the truth
    when given. `rival`: before anything else, another writer stores these bytes if the key is free. `late`: the effect
    comes only when this many further requests have been answered.
    """

    effect: bool = True
    reply: Reply = Reply.TRUE
    status: int | None = None
    code: str = "InternalError"
    rival: bytes | None = None
    late: int = 0


GOOD = Act()
LOST_REPLY = Act(reply=Reply.NONE)
LOST_REQUEST = Act(effect=False, reply=Reply.NONE)
SILENT_AFTER = Act(reply=Reply.SILENCE)
SILENT_BEFORE = Act(effect=False, reply=Reply.SILENCE)


def after_effect(status: int, code: str = "InternalError") -> Act:
    """The request succeeds; the client is told this error."""
    return Act(status=status, code=code)


def instead(status: int, code: str = "InternalError") -> Act:
    """Nothing is done; the client is told this error."""
    return Act(effect=False, status=status, code=code)


def beaten(act: Act, rival: bytes) -> Act:
    """`act`, just after another writer stored `rival`."""
    return replace(act, rival=rival)


class ScriptedS3:
    """The server, on a free loopback port. Use as a context manager.

    `listening=False` refuses connections at first; `honours_conditions=False` ignores If-None-Match, as some S3
    lookalikes do. HEAD follows the script of GET, DELETE that of PUT.
    """

    def __init__(
        self,
        *,
        put: Sequence[Act] = (),
        get: Sequence[Act] = (),
        always_put: Act = GOOD,
        always_get: Act = GOOD,
        honours_conditions: bool = True,
        listening: bool = True,
    ) -> None:
        self.objects: dict[str, bytes] = {}
        self.seen: list[str] = []
        self._scripts = {"PUT": list(put), "GET": list(get)}
        self._always = {"PUT": always_put, "GET": always_get}
        self._late: list[tuple[int, str, bytes]] = []
        self._lock = threading.Lock()
        self._honours_conditions = honours_conditions
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(), bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.server_bind()
        self._thread: threading.Thread | None = None
        if listening:
            self.listen()

    def listen(self) -> None:
        """Begin to accept connections; until then they are refused."""
        self._server.server_activate()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def options(self) -> S3Options:
        return S3Options(
            endpoint_url=self.endpoint_url, region="us-east-1", access_key_id="test", secret_access_key="test"
        )

    def count(self, method: str) -> int:
        """How many requests of this method arrived."""
        return self.seen.count(method)

    def perform(
        self, method: str, key: str, prefix: str, body: bytes, *, if_absent: bool
    ) -> tuple[Act, int, str, bytes]:
        """Take the next act and carry it out: the act, the true status, its code and the body to send."""
        with self._lock:
            self.seen.append(method)
            which = "PUT" if method in ("PUT", "DELETE") else "GET"
            act = self._scripts[which].pop(0) if self._scripts[which] else self._always[which]
            for due, late_key, late_body in self._late:
                if due <= len(self.seen):
                    self.objects.setdefault(late_key, late_body)
            if act.rival is not None:
                self.objects.setdefault(key, act.rival)
            if method == "PUT":
                return act, *self._put(act, key, body, if_absent=if_absent)
            if method == "DELETE":
                if act.effect:
                    self.objects.pop(key, None)
                return act, 204, "", b""
            if not key:
                return act, 200, "", self._listing(prefix)
            if key not in self.objects:
                return act, 404, "NoSuchKey", b""
            return act, 200, "", self.objects[key]

    def _put(self, act: Act, key: str, body: bytes, *, if_absent: bool) -> tuple[int, str, bytes]:
        if act.late:
            self._late.append((len(self.seen) + act.late, key, body))
            return 200, "", b""
        if if_absent and self._honours_conditions and key in self.objects:
            return 412, "PreconditionFailed", b""
        if act.effect:
            self.objects[key] = body
        return 200, "", b""

    def _listing(self, prefix: str) -> bytes:
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size>"
            "<LastModified>2026-11-01T00:00:00.000Z</LastModified></Contents>"
            for key, body in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one segment for head and body: two would wait for each other's acknowledgement (40 ms)

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                where = urlsplit(self.path)
                key = unquote(where.path).removeprefix(f"/{BUCKET}").removeprefix("/")
                prefix = dict(parse_qsl(where.query)).get("prefix", "")
                if_absent = self.headers.get("If-None-Match") == "*"
                act, status, code, answer = server.perform(self.command, key, prefix, body, if_absent=if_absent)
                if act.reply is Reply.SILENCE:
                    server._closing.wait()
                if act.reply is not Reply.TRUE:
                    self.close_connection = True
                    return
                if act.status is not None:
                    status, code, answer = act.status, act.code, b""
                if status >= 300:
                    answer = f"<Error><Code>{code}</Code><Message>scripted</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.send_header("ETag", f'"{hashlib.md5(answer).hexdigest()}"')
                self.send_header("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            do_PUT = do_GET = do_HEAD = do_DELETE = _serve  # noqa: N815 (names that http.server looks for)

            def log_message(self, *_: Any) -> None:
                """Keep the test's output clean; `seen` is the log."""

        return Handler
