"""The engine process: hosts one backend and speaks frames with the worker that started it.

Run as `python -m shuntserve.engine.host --fd N`, N being its end of a socket pair. It lives exactly as long as that
socket: end of stream, or the parent's death, ends it and everything below it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, cast

from shuntserve.engine import frames
from shuntserve.engine.backend import Backend, BackendLost, Emit
from shuntserve.engine.lifeline import die_with_parent, die_with_parent_in_children
from shuntserve.engine.logtail import shortened
from shuntserve.engine.port import Delta, EngineLost, LossKind, Refused
from shuntserve.errors import Corrupt, InvalidInput, ShuntServeError

STOP_GRACE_S = 5.0
"""A backend that has not stopped by then is left to SIGKILL."""
LAST_FRAME_S = 1.0


def load_backend(path: str) -> Callable[[Mapping[str, Any], Emit], Backend]:
    """The class named "module:Class"; raises InvalidInput when there is none."""
    module_name, _, class_name = path.partition(":")
    try:
        backend: Callable[[Mapping[str, Any], Emit], Backend] = getattr(
            importlib.import_module(module_name), class_name
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(f"engine backend {path!r}", str(error), "name it as module:Class") from error
    return backend


class Host(asyncio.Protocol):
    """One connection, one backend, one life."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._on_loop_error)
        self._splitter = frames.FrameSplitter()
        self._transport: asyncio.Transport | None = None
        self._backend: Backend | None = None
        self._deltas: list[Delta] = []
        self._refused: list[Refused] = []
        self._life: asyncio.Task[None] | None = None
        self.finished = self._loop.create_future()
        """Resolved with the exit status."""
        self.closed = self._loop.create_future()
        """Resolved when the last frame is out and the connection is closed."""

    # --- from the worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        self._finish(0)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                self._handle(frames.decode_to_host(body))
        except Corrupt as error:
            self._lose(EngineLost(LossKind.CRASHED, str(error)))

    def _handle(self, frame: frames.ToHost) -> None:
        match frame:
            case frames.Start():
                self._life = self._loop.create_task(self._live(frame))
            case frames.Submit(requests):
                if self._backend is not None:
                    for request in requests:
                        self._backend.submit(request)
            case frames.Abort(seq_ids):
                if self._backend is not None:
                    self._backend.abort(seq_ids)
            case frames.Stop():
                self._finish(0)

    # --- the backend's life

    async def _live(self, start: frames.Start) -> None:
        try:
            backend = load_backend(start.backend)(start.options, self._emit)
            self._backend = backend
            self._send(frames.Ready(await backend.start()))
            async with _background(self._pulse(backend)):
                lost = await backend.lost()
        except BackendLost as error:
            lost = error.lost
        except InvalidInput as error:
            lost = EngineLost(LossKind.INVALID, str(error))
        except ShuntServeError as error:
            lost = EngineLost(LossKind.CRASHED, str(error))
        except Exception as error:  # the outermost runner of the engine process: whatever it is, the worker is told
            lost = _crash(error)
        self._lose(lost)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception nobody awaited: a broken backend must not pass for an idle one."""
        loop.default_exception_handler(context)
        if isinstance(error := context.get("exception"), Exception):
            self._lose(_crash(error))

    def _lose(self, lost: EngineLost) -> None:
        if not self.finished.done():
            self._flush()
            self._send(frames.Lost(lost))
            self._finish(1)

    async def _pulse(self, backend: Backend) -> None:
        while True:
            progress = backend.progress()
            self._send(frames.Pulse(progress.steps, progress.patience_s))
            await asyncio.sleep(frames.PULSE_S)

    async def stop(self) -> None:
        """Stop the backend, within the grace; then let the last frames out."""
        if self._life is not None:
            self._life.cancel()
        if self._backend is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._backend.stop(), STOP_GRACE_S)
        if self._transport is not None:
            self._transport.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.closed, LAST_FRAME_S)

    # --- to the worker

    def _emit(self, event: Delta | Refused) -> None:
        if not self._deltas and not self._refused:
            self._loop.call_soon(self._flush)
        if isinstance(event, Delta):
            self._deltas.append(event)
        else:
            self._refused.append(event)

    def _flush(self) -> None:
        if self._deltas or self._refused:
            self._send(frames.Events(self._deltas, self._refused))
            self._deltas, self._refused = [], []

    def _send(self, frame: frames.FromHost) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.encode(frame))

    def _finish(self, status: int) -> None:
        if not self.finished.done():
            self.finished.set_result(status)


def _crash(error: Exception) -> EngineLost:
    sys.excepthook(type(error), error, error.__traceback__)
    return EngineLost(LossKind.CRASHED, shortened(f"{type(error).__name__}: {error}"))


@contextlib.asynccontextmanager
async def _background(coroutine: Coroutine[Any, Any, None]) -> Any:
    task = asyncio.get_running_loop().create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()


async def serve(connection: socket.socket) -> int:
    """Serve one worker until it hangs up, says stop, or the backend is lost; returns the exit status."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    _, host = await loop.create_connection(Host, sock=connection)
    status: int = await host.finished
    await host.stop()
    return status


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shuntserve.engine.host", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="this end of the worker's socket pair")
    parser.add_argument("--parent", type=int, required=True, help="process id of the worker")
    arguments = parser.parse_args(argv)
    die_with_parent(arguments.parent)
    connection = socket.socket(fileno=arguments.fd)
    os.set_inheritable(connection.fileno(), False)
    die_with_parent_in_children(connection)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve(connection))
    return uvloop.run(serve(connection))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The backend has been stopped: exit hooks of foreign libraries may hang, and nothing is left to save.
    os._exit(status)
