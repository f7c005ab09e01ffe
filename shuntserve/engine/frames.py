"""What worker and engine process say to each other: length-prefixed msgpack over one socket pair.

    worker → host   Start, Submit, Abort, Stop
    host → worker   Ready, Events, Pulse, Lost

A frame is a little-endian u32 length, then one msgpack value. The payload types are the port's own dataclasses, so
there is one definition of each. A length beyond `MAX_FRAME_BYTES` or bytes that do not decode raise `Corrupt`: the
stream is out of step.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from shuntserve.engine.port import Delta, EngineLost, EngineReady, Refused, SequenceRequest
from shuntserve.errors import Corrupt

MAX_FRAME_BYTES = 1 << 30
_LENGTH = struct.Struct("<I")


class Start(msgspec.Struct, frozen=True, tag=True):
    """First frame: which backend ("module:Class") to host, with which options."""

    backend: str
    options: dict[str, Any]


class Submit(msgspec.Struct, frozen=True, tag=True):
    requests: list[SequenceRequest]


class Abort(msgspec.Struct, frozen=True, tag=True):
    seq_ids: list[str]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End in good order; the host exits 0."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    ready: EngineReady


class Events(msgspec.Struct, frozen=True, tag=True):
    """Everything the backend emitted in one turn of the host's loop, in order."""

    events: list[Delta]
    refused: list[Refused]


class Pulse(msgspec.Struct, frozen=True, tag=True):
    """Sent every `PULSE_S` once ready: the host's loop turns and the backend has finished `steps` steps so far.

    `patience_s` is how long the backend thinks its present step may take (0: no opinion); a supervisor waits at least
    that long before it calls an unchanged `steps` a hang.
    """

    steps: int
    patience_s: float = 0.0


class Lost(msgspec.Struct, frozen=True, tag=True):
    lost: EngineLost


ToHost = Start | Submit | Abort | Stop
FromHost = Ready | Events | Pulse | Lost

PULSE_S = 0.5

_encoder = msgspec.msgpack.Encoder()
_to_host = msgspec.msgpack.Decoder(ToHost)
_from_host = msgspec.msgpack.Decoder(FromHost)


def encode(frame: ToHost | FromHost) -> bytes:
    """The frame as it goes over the wire, length first."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def decode_to_host(body: bytes | bytearray | memoryview) -> ToHost:
    return _decode(_to_host, body)


def decode_from_host(body: bytes | bytearray | memoryview) -> FromHost:
    return _decode(_from_host, body)


def _decode(decoder: Any, body: bytes | bytearray | memoryview) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise Corrupt("engine frame", f"does not decode: {error}", "replace the engine process") from error


class FrameSplitter:
    """Cuts a byte stream into frame bodies, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Bodies completed by `data`; the rest waits for the next call. Consume the iterator before feeding again."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise Corrupt("engine frame", f"{length} bytes announced", "replace the engine process")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]
