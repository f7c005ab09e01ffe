"""What we rely on where models run: executors, workers and both model runners."""

from __future__ import annotations

from shuntserve.engine.touch_point import TouchPoint, both, fields, has, mentions, takes

WORKERS: tuple[TouchPoint, ...] = (
    TouchPoint(
        "vllm.v1.executor.multiproc_executor:MultiprocExecutor.start_worker_monitor",
        "executor",
        "the moment all workers run, and where their processes are",
        both(
            takes("self", "inline"),
            mentions(r"h\.proc\.sentinel for h in workers", r'"shutting_down"', r"is_failed = True"),
        ),
    ),
    TouchPoint(
        "vllm.v1.executor:Executor.get_class",
        "vllm_options",
        "says which executor a configuration needs",
        takes("vllm_config"),
    ),
    TouchPoint(
        "vllm.v1.worker.cpu_worker:CPUWorker",
        "cpu_worker",
        "the CPU's worker is the GPU's with another model runner",
        lambda value: any(base.__name__ == "Worker" for base in value.__mro__),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_worker:Worker.sample_tokens",
        "worker",
        "the moment between forward pass and sampling",
        both(takes("self", "grammar_output"), mentions(r"self\.model_runner\.sample_tokens\(grammar_output\)")),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_worker:Worker.__init__",
        "worker",
        "says which model runner it has",
        mentions(r"self\.use_v2_model_runner = "),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_states",
        "resume",
        "the V1 runner makes a new request's state under a name we replace, without output",
        mentions(r"req_state = CachedRequestState\(", r"output_token_ids=\[\]"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState",
        "resume",
        "the prior tokens become output in its __post_init__",
        both(fields("sampling_params", "output_token_ids", "generator"), has("__post_init__")),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs",
        "resume",
        "optimistic_seq_lens_cpu holds the position of each row's next token",
        mentions(r"out=self\.optimistic_seq_lens_cpu\[:num_reqs\]"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens",
        "worker",
        "execute_model_state is set exactly when there is something to sample",
        mentions(r"if self\.execute_model_state is None:", r"self\._sample\("),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_input_batch:InputBatch.__init__",
        "resume",
        "seeded rows are listed with their generators",
        mentions(r"self\.generators: dict\[int, torch\.Generator\]"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_input_batch:InputBatch._make_sampling_metadata",
        "resume",
        "output tokens are filled in whenever this says that a logits processor needs them",
        mentions(r"or self\.logitsprocs_need_output_token_ids"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.may_reinitialize_input_batch",
        "resume",
        "the batch is made anew with what the first one was told",
        mentions(r"logitsprocs_need_output_token_ids=self\.input_batch\.logitsprocs_need_output_token_ids"),
    ),
    TouchPoint(
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.add_requests",
        "resume",
        "the V2 runner is told prompt and prefill length apart",
        mentions(r"prompt_len=prompt_len", r"all_token_ids=new_req_data\.prefill_token_ids"),
        v2_runner_only=True,
    ),
    TouchPoint(
        "vllm.v1.worker.gpu.sample.gumbel",
        "resume",
        "the V2 runner draws noise by seed and position",
        mentions(r"seed", r"pos"),
        v2_runner_only=True,
    ),
    TouchPoint(
        "vllm.plugins:load_general_plugins",
        "plugin",
        "calls our entry point in every process of the engine",
        mentions(r"DEFAULT_PLUGINS_GROUP"),
    ),
)
