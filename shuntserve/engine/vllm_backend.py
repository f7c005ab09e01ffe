"""vLLM's async engine as a backend of the engine process.

Sequences take vLLM's own way through input processor, core and output processor, but not through one coroutine
each: the output processor hands every output to a `_Sink`, so a step over hundreds of sequences costs one turn of
the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from shuntserve import telemetry
from shuntserve.engine import compat, plugin, pulse
from shuntserve.engine.backend import BackendLost, Emit, Progress
from shuntserve.engine.formation import CAUSE_GRACE_S, Formation
from shuntserve.engine.pipeline_options import shared_options
from shuntserve.engine.port import EngineLost, EngineReady, LossKind, Refused, SequenceRequest
from shuntserve.engine.process import loss_by_exit_status
from shuntserve.engine.session import Session
from shuntserve.engine.vllm_options import (
    VllmOptions,
    check_model,
    executor_class,
    prepare_environment,
    vllm_config,
)

log = logging.getLogger(__name__)

_WARM_UP_TOKENS = 256
_LAST_WORDS_S = 2.0
_STATUS_RETRIES = 100
_STATUS_RETRY_S = 0.01


class VllmBackend:
    """One AsyncLLM. Options: see `VllmOptions`."""

    def __init__(self, options: Mapping[str, Any], emit: Emit) -> None:
        self._options = VllmOptions.from_mapping(options)
        self._emit = emit
        self._llm: Any = None
        self._sequences: Any = None
        self._tasks: tuple[str, ...] = ()
        self._outbox: deque[Any] = deque()
        self._mail = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._core_ids: dict[str, str] = {}
        """Id in the core of each sequence that is under way."""
        self._pulse = pulse.PulsePage()
        self._worker_died = asyncio.Event()
        self._formation: Formation | None = None

    # --- life

    async def start(self) -> EngineReady:
        compat.check_version()
        check_model(self._options.model)
        prepare_environment(self._options)
        if self._options.unlike_stages and self._options.pipeline is not None:
            telemetry.log_to(sys.stderr, "info")
            self._formation = Formation(self._options.pipeline)
            self._formation.open()
        os.environ[plugin.HOST_PID_VARIABLE] = str(os.getpid())
        os.environ[pulse.PULSE_VARIABLE] = self._pulse.path
        from vllm.v1.engine.async_llm import AsyncLLM

        from shuntserve.engine import vllm_sequence

        config = vllm_config(self._options)
        compat.check_touch_points(v2_runner=config.use_v2_model_runner)
        if self._formation is not None:
            self._formation.admit(shared_options(self._options, config))
        self._sequences = vllm_sequence
        async with self._explained():
            # Blocks the loop until the core is up, on purpose: its process must be started by the main thread
            # (lifeline).
            self._llm = AsyncLLM(config, executor_class(config, self._options), log_stats=False, log_requests=False)
            self._tasks = await self._llm.get_supported_tasks()
            self._sender = asyncio.get_running_loop().create_task(self._send_mail())
            await self._warm_up()
        if self._formation is not None:
            self._formation.running(self._local_death)
        return self._ready()

    @contextlib.asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        """When a pipeline's start fails because some part of it was lost, say so instead of what that looks like from
        here."""
        try:
            yield
        except Exception as error:
            if self._formation is None:
                raise
            await asyncio.sleep(CAUSE_GRACE_S)
            if (lost := self._formation.verdict()) is None:
                raise
            raise BackendLost(lost) from error

    async def _warm_up(self) -> None:
        """Two throw-away sequences: what a first step costs is paid here, and the pulse learns how long one may
        take."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        length = max(1, min(_WARM_UP_TOKENS, self._llm.model_config.max_model_len - 2))
        common: dict[str, Any] = {"max_tokens": 2, "ignore_eos": True, "detokenize": False}
        greedy = SamplingParams(temperature=0.0, **common)
        seeded = SamplingParams(temperature=1.0, seed=0, top_p=0.9, top_k=9, **common)

        async def run(name: str, params: SamplingParams) -> None:
            async for _ in self._llm.generate(tokens_input([0] * length), params, name):
                pass

        await asyncio.gather(run("warm-up greedy", greedy), run("warm-up seeded", seeded))
        await self._llm.reset_prefix_cache()

    async def lost(self) -> EngineLost:
        loop = asyncio.get_running_loop()
        processes = self._core_processes()
        died = asyncio.Event()
        for process in processes:
            loop.add_reader(process.sentinel, died.set)
        assert self._sender is not None
        watched = {
            loop.create_task(died.wait()),
            loop.create_task(self._worker_died.wait()),
            self._llm.output_handler,
            self._sender,
        }
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        for process in processes:
            loop.remove_reader(process.sentinel)
        return await self._cause_of_death(processes)

    async def _cause_of_death(self, processes: Sequence[Any]) -> EngineLost:
        lost = await self._local_cause(processes)
        if self._formation is None:
            return lost
        await asyncio.sleep(CAUSE_GRACE_S)
        return self._formation.verdict(lost) or lost

    def _local_death(self) -> bool:
        """Whether the core or one of its workers here is dead already."""
        if self._pulse.worker_exit() is not None:
            return True
        alive = Session(os.getsid(0)).members()
        return any(process.pid not in alive for process in self._core_processes())

    async def _local_cause(self, processes: Sequence[Any]) -> EngineLost:
        """By the core's exit status. vLLM's own monitor waits for the same processes, so the status may come late."""
        if (status := self._pulse.worker_exit()) is not None:
            return loss_by_exit_status("engine worker", status)
        for _ in range(int(_LAST_WORDS_S / _STATUS_RETRY_S)):
            statuses = [process.exitcode for process in processes if process.exitcode is not None]
            if statuses:
                # A core that is told to end (SIGTERM) ends in good order, with status 0.
                status = statuses[0]
                return loss_by_exit_status("engine core", status) if status else _TOLD_TO_END
            await asyncio.sleep(_STATUS_RETRY_S)
        return EngineLost(LossKind.CRASHED, "the engine core's connection broke")

    async def stop(self) -> None:
        if self._formation is not None:
            self._formation.close()
        if self._sender is not None:
            self._sender.cancel()
        if self._llm is not None:
            self._llm.shutdown(timeout=0)

    # --- sequences

    def submit(self, request: SequenceRequest) -> None:
        from vllm.exceptions import VLLMClientError

        try:
            self._begin(request)
        except (VLLMClientError, ValueError, TypeError) as error:
            # All of vLLM's checks of one request raise these; anything else is a fault of the engine.
            code = "prior_mismatch" if isinstance(error, self._sequences.PriorMismatch) else "refused_by_engine"
            self._emit(Refused(request.seq_id, code, str(error)))

    def _begin(self, request: SequenceRequest) -> None:
        from vllm.inputs import tokens_input

        sequences, llm = self._sequences, self._llm
        prior = request.prior_token_ids
        core = llm.input_processor.process_inputs(
            request.seq_id,
            tokens_input(list(request.prompt_token_ids)),
            sequences.sampling_params(request, self._options.stream_interval_tokens),
            supported_tasks=self._tasks,
            priority=request.priority,
        )
        llm.input_processor.assign_request_id(core)
        earlier = None
        if prior:
            earlier = sequences.Prior(llm.output_processor.tokenizer, core, prior, llm.model_config.max_model_len)
            if (finished := earlier.finish(request.seq_id)) is not None:
                self._emit(finished)
                return
        sink = _Sink(request.seq_id, core.request_id, self)
        llm.output_processor.add_request(core, None, None, 0, sink)
        if earlier is not None:
            earlier.prime(llm.output_processor.request_states[core.request_id])
        self._core_ids[request.seq_id] = core.request_id
        self._post(sequences.core_request(core, prior))

    def abort(self, seq_ids: Sequence[str]) -> None:
        core_ids = [self._core_ids.pop(seq_id) for seq_id in seq_ids if seq_id in self._core_ids]
        if core_ids:
            self._post(self._llm.output_processor.abort_requests(core_ids, internal=True))

    def progress(self) -> Progress:
        beat = self._pulse.read()
        if self._pulse.worker_exit() is not None:
            self._worker_died.set()
        return Progress(beat.steps, beat.patience_s)

    def _post(self, mail: Any) -> None:
        """Queue one message to the core: a request, or a list of ids to abort. They leave in this order."""
        self._outbox.append(mail)
        self._mail.set()

    async def _send_mail(self) -> None:
        core = self._llm.engine_core
        while True:
            await self._mail.wait()
            self._mail.clear()
            while self._outbox:
                mail = self._outbox.popleft()
                if isinstance(mail, list):
                    await core.abort_requests_async(mail)
                else:
                    await core.add_request_async(mail)

    def took(self, seq_id: str, core_id: str, output: Any) -> None:
        """One output of one sequence, straight from vLLM's output processor."""
        if self._core_ids.get(seq_id) != core_id:
            return  # aborted meanwhile
        completion = output.outputs[0]
        if completion.finish_reason == "abort":
            return  # a core that is told to end says so of every sequence: not an end of the sequence, but of the core
        if completion.finish_reason is not None:
            del self._core_ids[seq_id]
        if completion.finish_reason == "error":
            self._emit(Refused(seq_id, "refused_by_engine", "the engine gave this sequence up, see its log"))
            return
        self._emit(self._sequences.delta_of(seq_id, completion))

    # --- description

    def _ready(self) -> EngineReady:
        config, processor = self._llm.vllm_config, self._llm.input_processor
        eos_ids = processor.generation_config_fields.get("eos_token_id")
        eos = {eos_ids} if isinstance(eos_ids, int) else set(eos_ids or ())
        if (primary := processor.renderer.get_eos_token_id()) is not None:
            eos.add(primary)
        return EngineReady(
            config.model_config.max_model_len,
            config.scheduler_config.max_num_seqs,
            tuple(sorted(eos)),
            {**_fingerprint(config), **self._stages(), **self._options.fingerprint},
        )

    def _stages(self) -> dict[str, str]:
        """Of a pipeline whose sizes are no two numbers."""
        return {"stages": self._options.pipeline.topology.describe()} if self._options.pipeline is not None else {}

    def _core_processes(self) -> Sequence[Any]:
        manager = self._llm.engine_core.resources.engine_manager
        processes: Sequence[Any] = manager.processes
        return processes


class _Sink:
    """Stands where vLLM puts the queue of one request; takes outputs the moment they are made."""

    __slots__ = ("_backend", "_core_id", "_seq_id")

    def __init__(self, seq_id: str, core_id: str, backend: VllmBackend) -> None:
        self._seq_id = seq_id
        self._core_id = core_id
        self._backend = backend

    def put(self, output: Any) -> None:
        if not isinstance(output, Exception):  # an exception means that the core is dead, which `lost` reports
            self._backend.took(self._seq_id, self._core_id, output)


_TOLD_TO_END = EngineLost(LossKind.KILLED, "engine core was told to end")


def _fingerprint(config: Any) -> dict[str, str]:
    """What results depend on, as far as the engine knows it."""
    from vllm.platforms import current_platform

    parallel = config.parallel_config
    backend = config.attention_config.backend
    return {
        "engine": f"vllm {compat.installed_version()}",
        "torch": importlib.metadata.version("torch"),
        "runner": "v2" if config.use_v2_model_runner else "v1",
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "quantization": str(config.model_config.quantization or "none"),
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
        "device": "cpu" if current_platform.is_cpu() else str(current_platform.get_device_name()),
        "attention": backend.name if backend is not None else "auto",
        "tensor_parallel": str(parallel.tensor_parallel_size),
        "pipeline_parallel": str(parallel.pipeline_parallel_size),
    }
