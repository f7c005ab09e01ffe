"""What each of several workers on one machine gets: its GPUs, or its share of the cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shuntserve.errors import InvalidInput


def default_workers(gpus: int, gpus_each: int) -> int:
    """One worker for each group of GPUs; without a GPU, one worker with all cores."""
    return max(1, gpus // gpus_each)


@dataclass(frozen=True, slots=True)
class Share:
    """One worker's part of the machine: the environment that says which GPUs it sees, or its number of threads."""

    environment: Mapping[str, str]
    cpu_threads: int | None = None


def shares(workers: int, cores: int, gpus: Sequence[str], gpus_each: int) -> list[Share]:
    """What keeps workers out of each other's way.

    Raises InvalidInput when there are GPUs, but too few of them for this many workers.
    """
    if not gpus:
        return [Share({}, max(1, cores // workers))] * workers
    if workers * gpus_each > len(gpus):
        raise InvalidInput(
            "--workers",
            f"{workers} workers with {gpus_each} GPUs each need {workers * gpus_each}, this machine has {len(gpus)}",
            f"use at most {len(gpus) // gpus_each} workers, or fewer GPUs for each",
        )
    groups = [gpus[worker * gpus_each : (worker + 1) * gpus_each] for worker in range(workers)]
    return [Share({"CUDA_VISIBLE_DEVICES": ",".join(group)}) for group in groups]
