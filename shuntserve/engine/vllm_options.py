"""From a backend's options to vLLM's configuration: arguments, environment, and our scheduler and worker put in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shuntserve.core.engine_options import check_engine_options
from shuntserve.core.near_miss import did_you_mean
from shuntserve.engine import pipeline_options
from shuntserve.engine.logtail import shortened
from shuntserve.engine.pipeline_options import PipelineOptions
from shuntserve.errors import InvalidInput

_WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": (
        "shuntserve.engine.cpu_worker.ResumeCPUWorker",
        "shuntserve.engine.cpu_worker.StageCPUWorker",
    ),
    "vllm.v1.worker.gpu_worker.Worker": (
        "shuntserve.engine.worker.ResumeGPUWorker",
        "shuntserve.engine.stage_worker.StageGPUWorker",
    ),
}
"""vLLM's worker: ours, and ours in a pipeline of unlike stages."""
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""A batch engine reports to nobody."""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What `VllmBackend` takes. `engine` holds engine arguments from the allow-list of `core.engine_options`."""

    model: str
    """A directory or a name on the model hub."""
    revision: str | None = None
    tokenizer: str | None = None
    tokenizer_revision: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    scheduling_policy: str = "fcfs"
    """"priority" lets `SequenceRequest.priority` decide, lower first."""
    stream_interval_tokens: int = 16
    """Tokens of one sequence between two deltas. Checkpoints are taken every few seconds, so a delta per token
    would only cost time: about 20 µs of one core each in vLLM's frontend and as much in the worker. What an
    interruption loses of it, at most 15 tokens a sequence, is well under a second of decoding."""
    cpu_threads: int | None = None
    """Threads of a CPU engine's arithmetic; None leaves it to vLLM. Several engines on one machine share its cores."""
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    """What the caller knows of model and tokenizer (hashes), passed on in `EngineReady.fingerprint`."""
    pipeline: PipelineOptions | None = None
    """Stages and hosts, when this engine is more than one process on one machine with equal parts."""
    scheduler_cls: str | None = None
    """Another scheduler, a subclass of ours, by qualified name. Tests plant faults with it."""

    @property
    def unlike_stages(self) -> bool:
        """Whether this engine needs our executor and workers for pipelines."""
        return self.pipeline is not None and not self.pipeline.stock

    @staticmethod
    def from_mapping(options: Mapping[str, Any]) -> VllmOptions:
        """Checked options. Raises InvalidInput for unknown ones, naming near misses."""
        known = {item.name for item in fields(VllmOptions)}
        for name in options:
            if name not in known:
                raise InvalidInput(f"option {name!r} of the vLLM engine", "is unknown", did_you_mean(name, known))
        if not isinstance(options.get("model"), str) or not options["model"]:
            raise InvalidInput("model", "is missing", "name a directory or a model on the hub")
        checked = dict(options)
        checked["engine"] = check_engine_options(options.get("engine") or {})
        if checked.get("scheduling_policy", "fcfs") not in ("fcfs", "priority"):
            raise InvalidInput("scheduling_policy", "is unknown", "use fcfs or priority")
        if options.get("pipeline") is not None:
            checked["pipeline"] = PipelineOptions.from_mapping(options["pipeline"])
            pipeline_options.check_engine_options(checked["engine"])
        return VllmOptions(**checked)


def check_model(model: str) -> None:
    """A model that looks like a path must be a readable checkpoint. Raises InvalidInput."""
    path = Path(model)
    looks_local = path.is_absolute() or model.startswith((".", "~")) or path.exists()
    if looks_local and not (path / "config.json").is_file():
        cause = "has no config.json" if path.is_dir() else "is not a directory"
        raise InvalidInput(f"model {model}", cause, "name a directory with a Hugging Face checkpoint")


def prepare_environment(options: VllmOptions) -> None:
    """What must stand in the environment before vLLM is imported. Explicit settings of the user are kept."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if options.cpu_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(options.cpu_threads)
    if options.pipeline is not None:
        os.environ[pipeline_options.PARTITION_VARIABLE] = ",".join(map(str, options.pipeline.topology.layer_counts))


def vllm_config(options: VllmOptions, node: int = 0) -> Any:
    """vLLM's resolved configuration with our scheduler and worker, for node process `node` of a pipeline. Raises
    InvalidInput when vLLM refuses the options."""
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    on_cpu = current_platform.is_cpu()
    start_light = on_cpu and _prefer_light_processes(options)
    if on_cpu and options.engine.get("enforce_eager"):
        _compile_nothing()
    arguments = AsyncEngineArgs(
        model=options.model,
        revision=options.revision,
        tokenizer=options.tokenizer,
        tokenizer_revision=options.tokenizer_revision,
        scheduling_policy=options.scheduling_policy,
        disable_log_stats=True,
        **options.engine,
        **(pipeline_options.engine_arguments(options.pipeline) if options.pipeline is not None else {}),
    )
    try:
        # LLM_CLASS: the batch sizes of vLLM's offline class, which are made for throughput.
        config = arguments.create_engine_config(UsageContext.LLM_CLASS)
    except ValueError as error:  # pydantic's ValidationError is one
        thing = f"model {options.model} with these engine options"
        raise InvalidInput(thing, _telling_part(error), "change the options, or use another model") from error
    if start_light:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    _put_in_ours(config, options)
    if options.pipeline is not None:
        pipeline_options.adapt(config, options.pipeline, node)
    return config


def executor_class(config: Any, options: VllmOptions) -> type[Any]:
    """Ours for a pipeline of unlike stages, else vLLM's for this configuration; the one with worker processes of its
    own is watched."""
    if options.unlike_stages:
        from shuntserve.engine.pipeline_executor import PipelineExecutor

        return PipelineExecutor
    from vllm.v1.executor import Executor
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    from shuntserve.engine.executor import WatchedExecutor

    chosen: type[Any] = Executor.get_class(config)
    return WatchedExecutor if chosen is MultiprocExecutor else chosen


def _prefer_light_processes(options: VllmOptions) -> bool:
    """Whether a CPU engine may run in one process, forked from this one.

    vLLM starts a worker process of its own for the sake of thread binding, and both afresh, so that `import vllm` runs
    three times. Without binding neither is needed: start-up takes 4 s beyond the import instead of 20 s. Binding stays
    with those who ask for it in VLLM_CPU_OMP_THREADS_BIND; it would put all engines of one machine on the same cores.
    """
    ranks = options.engine.get("tensor_parallel_size", 1) * options.engine.get("pipeline_parallel_size", 1)
    if options.pipeline is not None:
        ranks = options.pipeline.topology.world
    if os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind") != "nobind":
        return False
    chosen = "VLLM_WORKER_MULTIPROC_METHOD" in os.environ
    if ranks == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # keeps the worker inside the core's process
    return not chosen


def _compile_nothing() -> None:
    """vLLM's eager mode still compiles a few helpers when they are first used: on a CPU the C++ compiler then runs for
    many seconds in the middle of a step, or is missing."""
    import torch._dynamo

    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # for processes that start afresh
    torch._dynamo.config.disable = os.environ["TORCHDYNAMO_DISABLE"] == "1"  # for this one and its forks


def _put_in_ours(config: Any, options: VllmOptions) -> None:
    workers = _WORKERS.get(config.parallel_config.worker_cls)
    if workers is None:
        raise InvalidInput(
            f"vLLM's worker {config.parallel_config.worker_cls}", "is not supported", "use a CUDA GPU or the CPU"
        )
    config.parallel_config.worker_cls = workers[options.unlike_stages]
    ahead = config.scheduler_config.async_scheduling
    ours = f"shuntserve.engine.scheduler.{'ResumeAsyncScheduler' if ahead else 'ResumeScheduler'}"
    config.scheduler_config.scheduler_cls = options.scheduler_cls or ours


def _telling_part(error: ValueError) -> str:
    """What a person needs of an error: of pydantic's the first mistake and where it is; without the list of everything
    that vLLM could do instead."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        message = f"{place}: {message}" if place else message
    else:
        message = str(error)
    return shortened(message.split(" Supported architectures: ")[0]).removesuffix(".")
