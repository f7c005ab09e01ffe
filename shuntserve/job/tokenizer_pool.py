"""Tokenizers written in Python, one process a core.

They are plain child processes that speak Arrow, not `multiprocessing`: that would import the user's main program again
in each child and send pickles.
"""

from __future__ import annotations

import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from shuntserve.errors import Unavailable
from shuntserve.job.tokenizer_child import REQUEST
from shuntserve.job.tokenizing import TokenLists

_TEXTS_AT_ONCE = 128


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    requests: pa.ipc.RecordBatchStreamWriter
    replies: pa.ipc.RecordBatchStreamReader | None = None


class ProcessEncoder:
    """Spreads texts over child processes; a child that dies is an error of the whole ingest, never a missing row."""

    def __init__(self, directory: Path, *, trust_remote_code: bool, mode: str, processes: int) -> None:
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children = [_start(directory, mode, trust_remote_code) for _ in range(processes)]
        for child in self._children:
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="tokenize")

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> TokenLists:
        slices = [texts[begin : begin + _TEXTS_AT_ONCE] for begin in range(0, len(texts), _TEXTS_AT_ONCE)]
        parts = list(self._threads.map(partial(self._encode_slice, special_tokens=special_tokens), slices))
        if not parts:
            return TokenLists(np.zeros(0, np.int32), np.zeros(1, np.int32))
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        return TokenLists(np.concatenate([part.tokens for part in parts]), offsets)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            assert child.process.stdin is not None
            assert child.process.stdout is not None
            child.process.kill()  # it holds nothing that could be lost
            child.process.wait()
            child.process.stdout.close()
            with suppress(BrokenPipeError):  # what it was still to be told
                child.process.stdin.close()

    def _encode_slice(self, texts: Sequence[str], *, special_tokens: bool) -> TokenLists:
        child = self._idle.get()
        try:
            special = pa.array([special_tokens] * len(texts), pa.bool_())
            child.requests.write_batch(pa.record_batch([pa.array(texts, pa.string()), special], schema=REQUEST))
            assert child.process.stdin is not None
            child.process.stdin.flush()
            if child.replies is None:
                child.replies = pa.ipc.open_stream(pa.PythonFile(child.process.stdout, "r"))
            ids = child.replies.read_next_batch().column(0)
        except (OSError, StopIteration, pa.ArrowInvalid) as error:
            raise Unavailable(
                "tokenizer process", "ended in the middle of its work", "run the command again; see its message above"
            ) from error
        finally:
            self._idle.put(child)
        return TokenLists(ids.flatten().to_numpy(), ids.offsets.to_numpy() - ids.offsets[0].as_py())


def _start(directory: Path, mode: str, trust_remote_code: bool) -> _Child:
    arguments = [str(directory), mode, "1" if trust_remote_code else "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "shuntserve.job.tokenizer_child", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    return _Child(process, pa.ipc.new_stream(pa.PythonFile(process.stdin, "w"), REQUEST))
