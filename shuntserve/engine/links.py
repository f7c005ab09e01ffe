"""Connections between the nodes of a pipeline that say one thing: both ends live.

vLLM itself would wait for minutes, or without end, for a peer that is gone. Over a link each end learns of the other's
end in three ways: its process is gone (end of stream, at once), its host or the network is gone (the kernel's own
timers, `LINK_TIMEOUT_S`, which need no help from a busy process), or it is stopped (no beat for the silence allowed).

    node → leader    Hello, Beat, Trouble
    leader → node    Welcome or Refusal, Running, Beat
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from shuntserve.errors import Corrupt

BEAT_S = 1.0
LINK_TIMEOUT_S = 5.0
"""How long the kernel keeps trying before it calls a silent network dead."""
START_SILENCE_S = 60.0
"""While modules are imported and weights loaded, a process may be deaf for long; the kernel still answers for it."""
RUN_SILENCE_S = 5.0
_MAX_MESSAGE_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_LENGTH = struct.Struct("<I")


# --- messages


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A node asks to take part."""

    generation: str
    token: str
    node: int
    package: str
    engine: str


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """Everybody is here. `options` are the leader's, resolved, for all nodes."""

    options: dict[str, Any]
    store_port: int


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """The node does not belong here."""

    cause: str


class Running(msgspec.Struct, frozen=True, tag=True):
    """The engine is up: from now on silence is short."""


class Beat(msgspec.Struct, frozen=True, tag=True):
    """This process still turns."""


class Trouble(msgspec.Struct, frozen=True, tag=True):
    """The node is about to end; `kind` is a `port.LossKind`."""

    kind: str
    detail: str


Message = Hello | Welcome | Refusal | Running | Beat | Trouble

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Wire:
    """One connected socket that carries messages. Sending is safe from several threads, reading from one."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._buffer = bytearray()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", 1),
            ("TCP_KEEPINTVL", 1),
            ("TCP_KEEPCNT", int(LINK_TIMEOUT_S) - 1),
            ("TCP_USER_TIMEOUT", int(LINK_TIMEOUT_S * 1000)),
        ):
            if hasattr(socket, name):  # Linux
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def peer(self) -> str:
        with contextlib.suppress(OSError):
            return str(self._socket.getpeername()[0])
        return "a node that is gone"

    def send(self, message: Message) -> None:
        """Raises OSError when the other end is gone."""
        body = _encoder.encode(message)
        with self._lock:
            self._socket.sendall(_LENGTH.pack(len(body)) + body)

    def read(self) -> list[Message]:
        """What has come; waits for the first bytes as long as the socket's timeout says. Raises EOFError at the end of
        the stream, OSError when the connection broke, Corrupt for what no node of ours would say."""
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise EOFError
        self._buffer += data
        return list(self._complete())

    def first(self) -> Message:
        """The first thing the other end says; as `read`, but waits until it is whole."""
        while not (messages := self.read()):
            pass
        return messages[0]

    def over(self) -> bool:
        """Whether the other end is known to be gone; does not wait, and reads nothing."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _complete(self) -> Iterator[Message]:
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > _MAX_MESSAGE_BYTES:
                raise Corrupt("pipeline link", f"{length} bytes announced", "let only this pipeline's nodes connect")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                yield _decoder.decode(body)
            except msgspec.DecodeError as error:
                cause = f"does not decode: {error}"
                raise Corrupt("pipeline link", cause, "let only this pipeline's nodes connect") from error

    def settimeout(self, timeout_s: float | None) -> None:
        self._socket.settimeout(timeout_s)

    def hang_up(self) -> None:
        """End the conversation; whoever reads, here or there, is told."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang_up()
        self._socket.close()

    def forget(self) -> None:
        """Give up this process's copy of a connection that belongs to its parent."""
        self._socket.close()


# --- watching


class LinkWatch:
    """Keeps the links of one process alive and tells when one ends, from a thread of its own.

    `heard(node, message)` and `lost(node, cause)` are called on that thread, `lost` at most once per link; so is
    `each_beat`, about once a second.
    """

    def __init__(
        self,
        wires: Mapping[int, Wire],
        heard: Callable[[int, Message], None],
        lost: Callable[[int, str], None],
        each_beat: Callable[[float], None] = lambda now_s: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wires = dict(wires)
        self._heard = heard
        self._lost = lost
        self._each_beat = each_beat
        self._clock = clock
        self._silence_s = START_SILENCE_S
        self._heard_at_s = dict.fromkeys(self._wires, clock())
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pipeline-links", daemon=True)
        # A process forked from this one must not keep the connections open beyond our end.
        os.register_at_fork(after_in_child=self._forget)

    def start(self) -> None:
        self._thread.start()

    def set_running(self) -> None:
        """From now on, no beat for `RUN_SILENCE_S` is a loss."""
        now_s = self._clock()
        for node in self._heard_at_s:
            self._heard_at_s[node] = now_s
        self._silence_s = RUN_SILENCE_S

    def tell(self, message: Message) -> None:
        """To everybody; those who are gone will be noticed."""
        for wire in list(self._wires.values()):
            with contextlib.suppress(OSError):
                wire.send(message)

    def close(self) -> None:
        """Hang up; the thread ends by itself."""
        self._closed = True
        for wire in list(self._wires.values()):
            wire.hang_up()

    def _forget(self) -> None:
        for wire in self._wires.values():
            wire.forget()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for node, wire in self._wires.items():
                selector.register(wire, selectors.EVENT_READ, node)
            beat_at_s = self._clock()
            while not self._closed:
                for key, _ in selector.select(max(0.0, beat_at_s - self._clock())):
                    self._read(selector, key.data)
                now_s = self._clock()
                if now_s >= beat_at_s:
                    beat_at_s = now_s + BEAT_S
                    self.tell(Beat())
                    self._each_beat(now_s)
                    self._judge(selector, now_s)

    def _read(self, selector: selectors.BaseSelector, node: int) -> None:
        try:
            messages = self._wires[node].read()
        except EOFError:
            self._lose(selector, node, "its process has ended")
        except OSError as error:
            self._lose(selector, node, f"the connection broke: {error.strerror or error}")
        except Corrupt as error:
            self._lose(selector, node, str(error))
        else:
            self._heard_at_s[node] = self._clock()
            for message in messages:
                if not isinstance(message, Beat):
                    self._heard(node, message)

    def _judge(self, selector: selectors.BaseSelector, now_s: float) -> None:
        for node, heard_at_s in list(self._heard_at_s.items()):
            if now_s - heard_at_s > self._silence_s:
                self._lose(selector, node, f"silent for {now_s - heard_at_s:.1f} s")

    def _lose(self, selector: selectors.BaseSelector, node: int, cause: str) -> None:
        if self._closed:
            return
        wire = self._wires.pop(node)
        del self._heard_at_s[node]
        selector.unregister(wire)
        wire.close()
        self._lost(node, cause)
