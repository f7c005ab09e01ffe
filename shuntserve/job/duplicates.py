"""Which rows repeat an earlier row's id, found without holding the ids.

External hash partitioning: a digest of every id goes, with the row's place, to one of some files by its first bits;
each file is then small enough to be sorted in memory. What is kept is one bit a row, in a file that is mapped, not
loaded.
"""

from __future__ import annotations

import errno
import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Self

import numpy as np
import numpy.typing as npt

from shuntserve.errors import Unavailable

_ROWS_PER_PARTITION = 1 << 20
_MAX_PARTITIONS = 512
_RECORD = np.dtype([("high", ">u8"), ("low", ">u8"), ("place", "<i8")])
_DIGEST_BYTES = 16


class DuplicateFinder:
    """Feed every id once with `add`, then `finish`, then ask `mask`. Places are any numbers in [0, places).

    The first of equal ids is the one at the lowest place. Two ids are equal when 128 bits of their BLAKE2b digests
    are: for a billion rows the chance of a false reject is below 1e-20. Its files have no names, so nothing is left
    behind by a crash.
    """

    def __init__(self, places: int, scratch_dir: str | None = None) -> None:
        self._places = places
        self._scratch_dir = scratch_dir
        self._partitions = max(1, min(_MAX_PARTITIONS, math.ceil(places / _ROWS_PER_PARTITION)))
        self._files = [_scratch_file(scratch_dir) for _ in range(self._partitions)]
        self._bits: npt.NDArray[np.uint8] | None = None
        self._bits_file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, ids: Sequence[str | None], places: npt.NDArray[np.int64]) -> None:
        """Note the ids at these places; None is no id."""
        there = [index for index, value in enumerate(ids) if value is not None]
        records = np.empty(len(there), dtype=_RECORD)
        digests = b"".join(
            hashlib.blake2b((ids[index] or "").encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
            for index in there
        )
        halves = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
        records["high"], records["low"] = halves[:, 0], halves[:, 1]
        records["place"] = places[there]
        partition = records["high"].astype(np.uint64) % np.uint64(self._partitions)
        records = records[np.argsort(partition, kind="stable")]
        ends = np.cumsum(np.bincount(partition.astype(np.int64), minlength=self._partitions))
        begin = 0
        with _full_disk_explained():
            for file, end in zip(self._files, ends, strict=True):
                if end > begin:
                    file.write(records[begin:end].tobytes())
                begin = end

    def finish(self) -> int:
        """Sort what was noted; returns how many rows are duplicates."""
        self._bits_file = _scratch_file(self._scratch_dir)
        with _full_disk_explained():
            self._bits_file.truncate(max(1, (self._places + 7) // 8))
        self._bits = np.memmap(self._bits_file, dtype=np.uint8, mode="r+")
        found = 0
        for file in self._files:
            file.seek(0)
            records = np.frombuffer(file.read(), dtype=_RECORD)
            file.close()
            order = np.lexsort((records["place"], records["low"], records["high"]))
            high, low = records["high"][order], records["low"][order]
            repeats = np.concatenate(([False], (high[1:] == high[:-1]) & (low[1:] == low[:-1])))
            places = records["place"][order][repeats[: len(order)]]
            np.bitwise_or.at(self._bits, places >> 3, np.left_shift(np.uint8(1), (places & 7).astype(np.uint8)))
            found += len(places)
        return found

    def mask(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """For each place whether its id stands at a lower place too."""
        assert self._bits is not None, "finish() comes first"
        bits: npt.NDArray[np.bool_] = ((self._bits[places >> 3] >> (places & 7).astype(np.uint8)) & 1).astype(np.bool_)
        return bits

    def close(self) -> None:
        """Give the scratch space back."""
        self._bits = None
        for file in (*self._files, self._bits_file):
            if file is not None:
                file.close()


def _scratch_file(folder: str | None) -> IO[bytes]:
    with _full_disk_explained():
        return tempfile.TemporaryFile(prefix="shuntserve-", dir=folder)


@contextmanager
def _full_disk_explained() -> Iterator[None]:
    """Says which disk is full, and what to do, instead of a bare OSError."""
    try:
        yield
    except OSError as error:
        cause = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"failed: {error.strerror}"
        raise Unavailable(
            f"scratch space {tempfile.gettempdir()}", cause, "free some space or set TMPDIR to another disk"
        ) from error
