"""What we rely on in the process that takes requests and makes texts: vLLM's frontend, and its configuration."""

from __future__ import annotations

from shuntserve.engine.touch_point import TouchPoint, accepts, both, fields, mentions, takes

FRONTEND: tuple[TouchPoint, ...] = (
    TouchPoint(
        "vllm.v1.engine.async_llm:AsyncLLM.__init__",
        "vllm_backend",
        "its parts are driven one by one instead of through generate()",
        mentions(
            r"self\.input_processor\b", r"self\.output_processor\b", r"self\.engine_core\b", r"self\.output_handler\b"
        ),
    ),
    TouchPoint(
        "vllm.v1.engine.async_llm:AsyncLLM",
        "vllm_backend",
        "the engine is made from a configuration and an executor in which parts are replaced",
        accepts("vllm_config", "executor_class", "log_stats", "log_requests"),
    ),
    TouchPoint(
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        "vllm_backend",
        "checks a request on the prompt alone, before the prior tokens are added",
        accepts("request_id", "prompt", "params", "supported_tasks", "priority"),
    ),
    TouchPoint(
        "vllm.v1.engine.input_processor:InputProcessor.assign_request_id",
        "vllm_backend",
        "gives the core's id of a sequence",
        both(takes("request"), mentions(r"request\.external_req_id = request\.request_id", r"request\.request_id = ")),
    ),
    TouchPoint(
        "vllm.v1.engine:EngineCoreRequest",
        "vllm_sequence",
        "prompt and prior travel as one prompt",
        fields("request_id", "prompt_token_ids", "sampling_params", "external_req_id", "priority"),
    ),
    TouchPoint(
        "vllm.v1.engine.output_processor:OutputProcessor.add_request",
        "vllm_backend",
        "takes our sink where vLLM puts a queue",
        takes("self", "request", "prompt", "parent_req", "request_index", "queue"),
    ),
    TouchPoint(
        "vllm.v1.engine.output_processor:OutputProcessor.process_outputs",
        "vllm_backend",
        "calls put() of the sink for every output",
        mentions(r"req_state\.queue\.put\(request_output\)", r"self\.request_states\.get"),
    ),
    TouchPoint(
        "vllm.v1.engine.output_processor:OutputProcessor.abort_requests",
        "vllm_backend",
        "aborts by the core's ids and returns what to tell the core",
        takes("self", "request_ids", "internal"),
    ),
    TouchPoint(
        "vllm.v1.engine.output_processor:RequestState.make_request_output",
        "vllm_sequence",
        "sent_tokens_offset says which tokens of a continued sequence are new",
        mentions(r"self\.sent_tokens_offset", r"self\.detokenizer\.output_token_ids\[", r"self\.stream_interval > 1"),
    ),
    TouchPoint(
        "vllm.v1.engine.output_processor:RequestState._new_completion_output",
        "vllm_sequence",
        "logprobs of a delta are counted from the end, so that priming them does no harm",
        mentions(r"logprobs\[-num_new_tokens:\]"),
    ),
    TouchPoint(
        "vllm.v1.engine.detokenizer:IncrementalDetokenizer.from_new_request",
        "vllm_sequence",
        "a detokenizer is primed with the prior tokens",
        takes("tokenizer", "request"),
    ),
    TouchPoint(
        "vllm.v1.engine.detokenizer:BaseIncrementalDetokenizer.update",
        "vllm_sequence",
        "finds stop strings in text that crosses the cut",
        both(takes("self", "new_token_ids", "stop_terminated"), mentions(r"check_stop_strings\(", r"self\.min_tokens")),
    ),
    TouchPoint(
        "vllm.v1.engine.detokenizer:BaseIncrementalDetokenizer.get_next_output_text",
        "vllm_sequence",
        "the first delta of a continued sequence begins with the prior's text",
        both(takes("self", "finished", "delta"), mentions(r"self\._last_output_text_offset")),
    ),
    TouchPoint(
        "vllm.v1.engine.logprobs:LogprobsProcessor._get_sampled_context_ids",
        "vllm_sequence",
        "takes the tokens before the cut from the first key of each position",
        mentions(r"next\(iter\(entry\)\)", r"max_context: int = 4"),
    ),
    TouchPoint(
        "vllm.v1.engine.core_client:AsyncMPClient.add_request_async",
        "vllm_backend",
        "requests go to the core in order",
        takes("self", "request"),
    ),
    TouchPoint(
        "vllm.v1.engine.core_client:AsyncMPClient.abort_requests_async",
        "vllm_backend",
        "aborts go to the core in order",
        takes("self", "request_ids"),
    ),
    TouchPoint(
        "vllm.v1.engine.utils:CoreEngineProcManager.__init__",
        "vllm_backend",
        "the core's process says by its exit status why it ended",
        mentions(r"self\.processes: list\[BaseProcess\]"),
    ),
    TouchPoint(
        "vllm.v1.engine.core_client:BackgroundResources",
        "vllm_backend",
        "leads to the core's process",
        fields("engine_manager"),
    ),
    TouchPoint(
        "vllm.sampling_params:SamplingParams.from_optional",
        "vllm_sequence",
        "takes parameters by their JSON names",
        accepts("structured_outputs", "logit_bias", "stream_interval", "extra_args", "output_kind", "skip_clone"),
    ),
    TouchPoint(
        "vllm.v1.core.sched.utils:check_stop",
        "vllm_sequence",
        "decides whether the prior tokens were the end already",
        takes("request", "max_model_len"),
    ),
)
