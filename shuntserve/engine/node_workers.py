"""vLLM's worker processes on a node that does not lead: started the way its own executor starts them."""

from __future__ import annotations

from typing import Any

from vllm.utils.network_utils import get_file_store_init_method
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.utils.system_utils import get_mp_context
from vllm.v1.executor.multiproc_executor import WorkerProc, set_multiprocessing_worker_envs

from shuntserve.engine.membership import topology_of


def start_workers(config: Any, node: int) -> list[Any]:
    """Start the ranks of `node` and wait until they are ready. Call from the main thread, with whose end they end.

    vLLM's executor would number them as if all nodes had equally many; apart from that this is its own start.
    """
    topology = topology_of(config)
    ranks = topology.node_span(node)
    set_multiprocessing_worker_envs(len(ranks))
    context = get_mp_context()
    lock = context.Lock()
    binding = OMPProcessManager(config)
    inherited: list[int] | None = [] if context.get_start_method() == "fork" else None
    unready = []
    for local_rank, rank in enumerate(ranks):
        with binding.configure_omp_envs(rank=rank, local_rank=local_rank):
            handle = WorkerProc.make_worker_process(
                vllm_config=config,
                local_rank=local_rank,
                rank=rank,
                distributed_init_method=get_file_store_init_method(),
                input_shm_handle=None,
                shared_worker_lock=lock,
                is_driver_worker=rank in topology.first_ranks,
                inherited_fds=inherited,
            )
        unready.append(handle)
        if inherited is not None:
            inherited.extend((handle.death_writer.fileno(), handle.ready_pipe.fileno()))
    workers: list[Any] = WorkerProc.wait_for_ready(unready)
    return workers
