"""What we rely on in the engine's core: requests, their prior tokens, and the schedulers."""

from __future__ import annotations

from shuntserve.engine.touch_point import TouchPoint, both, fields, has, mentions, takes

CORE: tuple[TouchPoint, ...] = (
    TouchPoint(
        "vllm.v1.request:Request.__init__",
        "resume",
        "prompt and prior are told apart by these attributes",
        mentions(
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
        takes("request", "block_hasher"),
    ),
    TouchPoint(
        "vllm.v1.request:RequestStatus",
        "scheduler",
        "says what a waiting request waits for",
        has("WAITING", "RUNNING", "PREEMPTED", "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR"),
    ),
    TouchPoint(
        "vllm.v1.engine:FinishReason",
        "vllm_sequence",
        "says how a sequence ended, in words that the port passes on",
        lambda value: [str(value.STOP), str(value.LENGTH), str(value.ABORT)] == ["stop", "length", "abort"],
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler.add_request",
        "scheduler",
        "the place where a request enters",
        takes("self", "request"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler._handle_blocked_waiting_request",
        "scheduler",
        "the moment a grammar is ready and nothing has been sampled from it",
        both(
            takes("self", "request"),
            mentions(r"WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR", r"self\.grammar_compile_error_reqs\.add"),
        ),
    ),
    TouchPoint(
        "vllm.v1.structured_output:StructuredOutputManager.accept_tokens",
        "scheduler",
        "moves a grammar over the prior tokens",
        takes("self", "request", "new_token_ids"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler.schedule",
        "scheduler",
        "begins a step",
        mentions(r"total_num_scheduled_tokens=total_num_scheduled_tokens", r"NewRequestData\.from_request"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler.schedule",
        "resume",
        "without prefill_stats more than the prompt may come from the prefix cache",
        mentions(r"if request\.prefill_stats and request\.num_preemptions"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
        "scheduler",
        "ends a step",
        takes("self", "scheduler_output", "model_runner_output"),
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
        mentions(r"resolve_obj_by_qualname\(self\.scheduler_cls\)"),
    ),
    TouchPoint(
        "vllm.config:ParallelConfig",
        "vllm_options",
        "the worker is named by its qualified name",
        fields("worker_cls"),
    ),
)
