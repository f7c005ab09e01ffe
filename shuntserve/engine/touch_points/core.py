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
        "vllm.v1.core.sched.scheduler:Scheduler.schedule",
        "seats",
        "admits those who wait as long as seats are free, counted like this, in the queue's order",
        mentions(
            r"num_running = len\(self\.running\) \+ self\.num_waiting_for_streaming_input",
            r"if num_running >= self\.max_num_active_reqs:",
            r"request = request_queue\.peek_request\(\)",
            r"if request\.num_stale_output_tokens and not request\.drop_stale_output:",
        ),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler._preempt_request",
        "seats",
        "takes a row's seat and memory, keeps its tokens, and lets it wait again",
        both(
            takes("self", "request", "timestamp"),
            mentions(
                r"request\.num_computed_tokens = 0",
                r"request\.num_stale_output_tokens = request\.num_in_flight_tokens",
                r"self\.waiting\.prepend_request\(request\)",
            ),
        ),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler._request_blocks_can_be_freed",
        "seats",
        "says whether a row's memory is there for others at once",
        takes("self", "request"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.scheduler:Scheduler._make_cached_request_data",
        "seats",
        "a row that was not in the last step is sent to the worker anew",
        mentions(r"if req_id not in self\.prev_step_scheduled_req_ids:"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.request_queue:PriorityRequestQueue",
        "seats",
        "the most urgent comes first, in peek_request and in iteration",
        both(has("peek_request"), mentions(r"yield heapq\.heappop\(heap_copy\)")),
    ),
    TouchPoint(
        "vllm.v1.core.sched.request_queue:SchedulingPolicy",
        "seats",
        "says whether priorities count",
        has("PRIORITY"),
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
