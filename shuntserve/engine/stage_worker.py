"""vLLM's workers as ranks of a pipeline whose stages differ.

Inside one rank nothing is unusual: vLLM is told the tensor parallel size of this stage as if it were everybody's, and
the layers of this stage by its own setting for uneven pipelines.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Any

import torch.distributed as dist
from vllm.platforms import current_platform

from shuntserve.engine import groups
from shuntserve.engine.membership import Membership, Phase, join_store, note_phase, topology_of
from shuntserve.engine.pipeline_options import flows_of, planned_kv_bytes
from shuntserve.engine.worker import ResumeGPUWorker


class StageWorkerMixin:
    """Put before a worker class of ours."""

    def __init__(self, vllm_config: Any, local_rank: int, rank: int, *args: Any, **keywords: Any) -> None:
        membership = Membership.from_environment()
        assert membership is not None, "a stage's worker runs only in a pipeline's process"
        self._topology = topology_of(vllm_config)
        self._flows = flows_of(vllm_config)
        self._stage = self._topology.stage_of(rank)
        self._store = join_store(membership)
        note_phase(self._store, rank, Phase.CONNECTING)
        vllm_config.parallel_config.tensor_parallel_size = self._topology.stages[self._stage].tp
        if (kv_bytes := planned_kv_bytes(vllm_config, self._stage)) is not None:
            vllm_config.cache_config.kv_cache_memory_bytes = kv_bytes
        super().__init__(vllm_config, local_rank, rank, *args, **keywords)  # type: ignore[call-arg]
        # The only reader of this number wants rank // tensor_parallel_size to be the stage.
        stage_ranks = self._topology.ranks_of(self._stage)
        vllm_config.parallel_config.rank = self._stage * len(stage_ranks) + stage_ranks.index(rank)

    def init_device(self) -> None:
        # Before vLLM does it: the generation's store instead of an address and a port that has to be free.
        dist.init_process_group(
            current_platform.dist_backend,
            store=dist.PrefixStore("groups", self._store),
            world_size=self._topology.world,
            rank=self.rank,  # type: ignore[attr-defined]
        )
        with groups.laid_out(self._topology, self._flows):
            super().init_device()  # type: ignore[misc]
        if len(self._topology.node_ranks) > 1:
            _answer_by_topology(len(self._topology.node_span(0)))

    def load_model(self, **keywords: Any) -> None:
        self._note(Phase.LOADING)
        super().load_model(**keywords)  # type: ignore[misc]

    def determine_available_memory(self) -> int:
        self._note(Phase.MEASURING)
        measured: int = super().determine_available_memory()  # type: ignore[misc]
        return measured

    def compile_or_warm_up_model(self) -> Any:
        self._note(Phase.COMPILING)
        times = super().compile_or_warm_up_model()  # type: ignore[misc]
        self._note(Phase.READY)
        return times

    def execute_model(self, scheduler_output: Any) -> Any:
        with self._fatal():
            return super().execute_model(scheduler_output)  # type: ignore[misc]

    def sample_tokens(self, grammar_output: Any) -> Any:
        with self._fatal():
            return super().sample_tokens(grammar_output)  # type: ignore[misc]

    def transport_counters(self) -> dict[str, int]:
        """What this rank has sent to the next stage since it started."""
        from vllm.distributed import get_pp_group

        counters = get_pp_group().counters
        return {name: getattr(counters, name) for name in counters.__slots__}

    def _note(self, phase: Phase) -> None:
        note_phase(self._store, self.rank, phase)  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def _fatal(self) -> Any:
        """An exception in a step ends this process. vLLM would only log it unless this rank's answer is awaited, and
        the other stages would wait for this one without end."""
        try:
            yield
        except Exception:  # the outermost runner of a step: whatever it is, the pipeline is out of step
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def _answer_by_topology(leader_ranks: int) -> None:
    """vLLM guesses which ranks share a host with rank 0 from the number of devices, assuming equal hosts; here the
    topology knows. On the instance, so no other group is touched."""
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
    from vllm.distributed.parallel_state import get_inner_dp_world_group

    world = get_inner_dp_world_group()

    def create(reader_rank_in_group: int = 0, blocking: bool = False) -> tuple[Any, list[Any]]:
        local_readers = 1 if world.rank < leader_ranks else 0
        queue = MessageQueue(n_reader=1, n_local_reader=local_readers, max_chunk_bytes=1 << 22, max_chunks=6)
        handles = [None] * world.world_size if world.rank == reader_rank_in_group else None
        dist.gather_object(queue.export_handle(), handles, dst=reader_rank_in_group, group=world.cpu_group)
        return queue, list(handles or [])

    world.create_single_reader_mq_broadcasters = create


class StageGPUWorker(StageWorkerMixin, ResumeGPUWorker):
    """One CUDA device of a stage."""
