"""What each of several workers on one machine gets: its GPUs, or its share of the cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shuntserve.errors import InvalidInput


def default_workers(gpus: int, gpus_each: int) -> int:
    """One worker for each group of GPUs; without a GPU, one worker with all cores."""
    return max(1, gpus // gpus_each)


KV_SHARE_OF_FREE_MEMORY = 0.4
"""On a CPU, where weights, activations and the user's other programs share the memory."""


@dataclass(frozen=True, slots=True)
class Share:
    """One worker's part of the machine: the environment that says which GPUs it sees, or its threads and memory."""

    environment: Mapping[str, str]
    cpu_threads: int | None = None
    kv_cache_bytes: int | None = None


def shares(workers: int, cores: int, free_memory_bytes: int, gpus: Sequence[str], gpus_each: int) -> list[Share]:
    """What keeps workers out of each other's way.

    A GPU's memory is its worker's alone; on a CPU, where vLLM would take nearly all memory for itself, each worker has
    a part. Raises InvalidInput when there are GPUs, but too few of them for this many workers.
    """
    if not gpus:
        kv_cache_bytes = int(free_memory_bytes * KV_SHARE_OF_FREE_MEMORY) // workers
        return [Share({}, max(1, cores // workers), kv_cache_bytes)] * workers
    if workers * gpus_each > len(gpus):
        raise InvalidInput(
            "--workers",
            f"{workers} workers with {gpus_each} GPUs each need {workers * gpus_each}, this machine has {len(gpus)}",
            f"use at most {len(gpus) // gpus_each} workers, or fewer GPUs for each",
        )
    groups = [gpus[worker * gpus_each : (worker + 1) * gpus_each] for worker in range(workers)]
    return [Share({"CUDA_VISIBLE_DEVICES": ",".join(group)}) for group in groups]
